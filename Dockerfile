# slim-model for the CPU: docker build --tag slim-model . && docker run --rm --volume "$PWD:/models" slim-model --help
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
RUN python -m venv /opt/slim-model
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# PyTorch's own index has it without CUDA, a tenth of the size.
RUN /opt/slim-model/bin/pip install --no-cache-dir --no-compile --constraint constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu .

FROM python:${PYTHON}
COPY --from=build /opt/slim-model /opt/slim-model
RUN useradd --create-home --uid 10001 slim
USER 10001
WORKDIR /models
ENV PATH=/opt/slim-model/bin:$PATH \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["slim-model"]
CMD ["--help"]
