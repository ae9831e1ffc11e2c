# What both ways begin with.
set -euo pipefail
# wait_for TEXT COMMAND...: until what the command prints has the text.
wait_for() {
  { set +x; } 2>/dev/null
  for _ in $(seq 300); do
    if "${@:2}" 2>&1 | grep "$1" >/dev/null; then set -x; return; fi
    sleep 0.2
  done
  "${@:2}"
  return 1
}
advice() { grep -m1 "$1" "$2" | sed 's/.*"error"/"error"/'; }
set -x
