# CPUs:          docker build -t aaren-rl .
# NVIDIA GPUs:   docker build -t aaren-rl:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# g++ is for torch.compile and the C step, EGL for environments that draw.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libegl1 libgl1 \
    && rm -rf /var/lib/apt/lists/*
ENV MUJOCO_GL=egl

WORKDIR /aaren-rl
COPY constraints.txt ./
# Before the sources, so that their changes do not download torch anew.
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
    "$(grep '^torch==' constraints.txt)"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .

# Data and runs are of the user: mount folders there.
ENV MINARI_DATASETS_PATH=/data/minari D4RL_DATASET_DIR=/data/d4rl
WORKDIR /work
CMD ["aaren-train", "--help"]
