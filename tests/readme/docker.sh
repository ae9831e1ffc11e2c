# From a fresh clone, with Docker.
source "$CHECKOUT/tests/readme/common.sh"

git clone --quiet "$CHECKOUT" "$NAME"
cd "$NAME"
docker build --quiet -t vap-orchestrator .
docker history --format '{{.Size}} {{.CreatedBy}}' vap-orchestrator | grep installed
one=$(docker run --detach -e DATABASE_URL="$DATABASE_URL" \
  -e KAFKA_BOOTSTRAP_SERVERS="$KAFKA_BOOTSTRAP_SERVERS" vap-orchestrator)
wait_for "partitions assigned" docker logs "$one"
scenario=$(docker exec "$one" orchestrator submit rtsp://user:pw@cam/1)
wait_for "order sent" docker logs "$one"
docker logs "$one" 2>&1 | grep "$scenario"
docker exec "$one" orchestrator status
docker exec "$one" orchestrator audit
docker exec "$one" id -u
docker stop -t 10 "$one"
docker inspect --format '{{.State.ExitCode}}' "$one" | grep '^0$'
docker rm "$one"

# A start while Postgres is away: healthy, and waiting; on a read-only root file system.
two=$(docker run --detach --read-only -e DATABASE_URL=postgresql://u:p@127.0.0.1:1/d \
  -e KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:1 vap-orchestrator)
wait_for "^healthy" docker inspect --format '{{.State.Health.Status}}' "$two"
docker exec "$two" orchestrator healthcheck --ready || true
docker logs "$two" 2>&1 | grep "setup waiting"
docker rm --force "$two"
