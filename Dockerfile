# Two images from one file:
#   docker build -t meal-gpu .                     CUDA 13, for NVIDIA drivers from 580 on (the default)
#   docker build -t meal-gpu:cpu --target cpu .    no GPU
# It starts out as the user 1000, works as any other (docker run --user), reads /data, writes /runs and /cache.

FROM ubuntu:noble-20260911 AS build
# Versions of Ubuntu's packages are not pinned: its archive keeps the newest of a release only.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# What pyproject.toml asks for, as files of their own: the layers that install it are made again when these lists
# change, and not with every change of pyproject.toml or of the source.
RUN mkdir /requirements && python3 -c 'import pathlib, tomllib; \
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]; \
core, extras = project["dependencies"], project["optional-dependencies"]; \
lists = {"torch": [line for line in core if line.startswith("torch")], "cpu": core + extras["dask"], \
         "cuda": core + extras["cuda"] + extras["dask-cuda"]}; \
[pathlib.Path(f"/requirements/{name}.txt").write_text("\n".join(lines) + "\n") for name, lines in lists.items()]'
COPY meal_gpu meal_gpu
COPY kernels kernels
COPY configs configs
COPY bench bench
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/bin/pip wheel --no-deps --wheel-dir /wheel .


FROM ubuntu:noble-20260911 AS cpu
# g++ and Python's headers are for torch.compile (meal-gpu bench), libgomp1 for numba's threads.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates g++ libgomp1 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/meal-gpu \
 && install -d -m 1777 /cache /data /runs
ENV PATH=/opt/meal-gpu/bin:$PATH LANG=C.UTF-8 PYTHONUNBUFFERED=1
COPY --from=build /requirements/torch.txt /requirements/cpu.txt /requirements/
# PyPI's PyTorch works without a GPU and brings CUDA's libraries along (4 GB). PyTorch's own index has it without:
# --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX_URL=
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -r /requirements/torch.txt \
 && pip install -r /requirements/cpu.txt
COPY --from=build /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl
# Downloaded weights, decoded images, embeddings and compiled kernels; any user may write there.
ENV HOME=/cache XDG_CACHE_HOME=/cache NUMBA_CACHE_DIR=/cache/numba CUPY_CACHE_DIR=/cache/cupy \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor TRITON_CACHE_DIR=/cache/triton CUDA_CACHE_PATH=/cache/nv
VOLUME ["/cache", "/runs"]
# From here the shipped configs' data/... and the default runs/... are /data/... and /runs/...
WORKDIR /
USER 1000:1000
# `docker stop` is Ctrl-C: finished rounds are kept, the exit code is 130, and --resume goes on.
STOPSIGNAL SIGINT
HEALTHCHECK --interval=10m --timeout=30s --start-period=30s CMD ["meal-gpu", "--version"]
ENTRYPOINT ["meal-gpu"]
CMD ["--help"]


# NVIDIA's base image is enough: the CUDA libraries come from PyPI with PyTorch and cuML.
FROM nvidia/cuda:13.0.3-base-ubuntu24.04 AS cuda
# As above; Triton compiles with g++ too.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates g++ libgomp1 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/meal-gpu \
 && install -d -m 1777 /cache /data /runs
ENV PATH=/opt/meal-gpu/bin:$PATH LANG=C.UTF-8 PYTHONUNBUFFERED=1
COPY --from=build /requirements/cuda.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install -r /requirements/cuda.txt
COPY --from=build /wheel /wheel
RUN pip install --no-cache-dir --no-deps /wheel/*.whl
ENV HOME=/cache XDG_CACHE_HOME=/cache NUMBA_CACHE_DIR=/cache/numba CUPY_CACHE_DIR=/cache/cupy \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor TRITON_CACHE_DIR=/cache/triton CUDA_CACHE_PATH=/cache/nv
VOLUME ["/cache", "/runs"]
WORKDIR /
USER 1000:1000
STOPSIGNAL SIGINT
HEALTHCHECK --interval=10m --timeout=30s --start-period=30s CMD ["meal-gpu", "--version"]
ENTRYPOINT ["meal-gpu"]
CMD ["--help"]
