# API, dashboard, migrations and housekeeping: no torch, a small image.
FROM python:3.11-slim
WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY backend backend
COPY dashboard dashboard
COPY workers workers
COPY migrations migrations
RUN pip install --no-cache-dir -c requirements.lock '.[s3]' \
 && useradd --create-home --uid 1000 zoograft && mkdir /data && chown zoograft /data
USER zoograft
VOLUME /data
EXPOSE 8080
CMD ["zoograft", "web", "--host", "0.0.0.0"]
