from __future__ import annotations

from slim_model.cli import main

main()
