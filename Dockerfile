# One image for all processes: `consumer`, `relay`, `setup`; without a command `run` does the whole job.
FROM python:3.13-slim-bookworm AS pip
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

FROM pip AS dependencies
COPY requirements.txt /
# Wheels only: there is no compiler here, and none is wanted.
RUN pip install --require-hashes --only-binary :all: --prefix /installed -r /requirements.txt

FROM pip AS ours
COPY requirements-build.txt /
RUN pip install --require-hashes --only-binary :all: -r /requirements-build.txt
WORKDIR /source
COPY . .
RUN pip install --no-deps --no-build-isolation --prefix /installed .

FROM python:3.13-slim-bookworm
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A layer for each: the dependencies stay the same from release to release.
COPY --from=dependencies /installed /usr/local
COPY --from=ours /installed /usr/local
# A number, so that Kubernetes can tell that it is not root.
USER 10001:10001
EXPOSE 9464 9465
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["orchestrator", "healthcheck"]
ENTRYPOINT ["orchestrator"]
CMD ["run"]

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vap-orchestrator" \
      org.opencontainers.image.description="Transactional-outbox orchestrator: exactly once from Kafka through Postgres to Kafka" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.13-slim-bookworm"
