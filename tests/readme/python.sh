# From a fresh clone, with nothing but Python. $INSIDE: `cd orchestrator` may lead into the checkout, or into
# the package in it.
source "$CHECKOUT/tests/readme/common.sh"

git clone --quiet "$CHECKOUT" "$NAME"
cd "$NAME"
cd "$INSIDE"
python3 -m venv venv
source venv/bin/activate
pip install --quiet --disable-pip-version-check -r requirements.txt
export DATABASE_URL KAFKA_BOOTSTRAP_SERVERS
python -m orchestrator.main 2>main.log &
wait_for "partitions assigned" cat main.log

scenario=$(python -m orchestrator submit rtsp://user:pw@cam/1)
wait_for "command accepted" cat main.log
wait_for "order sent" cat main.log
grep -h "$scenario" main.log
python -m orchestrator explain "$scenario"
for camera in /dev/video0 rtmp://cam/live "rtsp://u:p w@камера.рф/1"; do
  python -m orchestrator submit "$camera"
done
python -m orchestrator submit rtps://cam/1
wait_for "command refused" cat main.log
advice "command refused" main.log
python -m orchestrator audit
! command -v orchestrator || exit 1
(python -m orchestrator dlq list --limit x 2>&1 || true) | grep "^usage: python -m orchestrator dlq list"
kill %1
wait %1
! grep -E "user:pw|p w" main.log || exit 1

# The four troubles.
(KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:1 timeout 12 python -m orchestrator consumer 2>kafka.log) || true
advice "consumer waiting" kafka.log | grep KAFKA_BOOTSTRAP_SERVERS
(DATABASE_URL=postgresql://u:p@127.0.0.1:1/d timeout 5 python -m orchestrator.main 2>postgres.log) || true
advice "setup waiting" postgres.log | grep DATABASE_URL
(INPUT_TOPIC=no_such_topic timeout 9 python -m orchestrator consumer 2>topic.log) || true
advice "consumer waiting" topic.log | grep INPUT_TOPIC
(timeout 9 python -m orchestrator consumer 2>rights.log) & sleep 3
python - <<'SQL'
import os, psycopg
psycopg.connect(os.environ["DATABASE_URL"], autocommit=True).execute("ALTER TABLE workers RENAME TO gone")
SQL
python -m orchestrator submit rtsp://cam/1
wait_for "consumer waiting" cat rights.log
advice "consumer waiting" rights.log
wait
