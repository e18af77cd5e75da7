# shellcheck shell=bash
# The environment of programs that start a containerd of their own: e2e tests and the demo.

KUASAR_LAB_SCRATCH=

# lab_begin: a scratch directory with a short path (a socket's path has at most 107 bytes).
lab_begin() {
  KUASAR_LAB_SCRATCH=$(mktemp -d /tmp/kuasar-lab.XXXXXX)
}

# lab_run BIN COMMAND...: runs COMMAND with the lab's environment; BIN holds the sandboxer.
lab_run() {
  local bin=$1
  shift
  KUASAR_LAB_PREFIX=$KUASAR_PREFIX KUASAR_LAB_IMAGES=$KUASAR_IMAGES KUASAR_LAB_BIN=$bin \
    KUASAR_LAB_DIR=$KUASAR_LAB_SCRATCH "$@"
}

# lab_end STATUS: removes the scratch directory after success, keeps and names it otherwise.
# rm never crosses into a mount that a failed run left there.
lab_end() {
  if (($1 == 0)); then
    rm -rf --one-file-system "$KUASAR_LAB_SCRATCH"
  else
    printf 'kept for you to look at: %s\n' "$KUASAR_LAB_SCRATCH"
  fi
}
