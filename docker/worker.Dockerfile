# A worker: the same code with torch, torchvision and timm.
FROM python:3.11-slim
WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY backend backend
COPY dashboard dashboard
COPY workers workers
COPY migrations migrations
RUN pip install --no-cache-dir -c requirements.lock '.[workers,s3,huggingface,webdataset]' \
 && useradd --create-home --uid 1000 zoograft && mkdir /data && chown zoograft /data
USER zoograft
VOLUME /data
CMD ["zoograft", "worker"]
