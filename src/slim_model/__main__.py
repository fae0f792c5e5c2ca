from slim_model.cli import main

main()
