# shellcheck shell=bash
# The environment of programs that start a containerd of their own: e2e tests and the demo.

KUASAR_LAB_SCRATCH=

# lab_begin: a scratch directory with a short path (a socket's path has at most 107 bytes). The root
# of a pod with a user namespace must be able to walk through.
lab_begin() {
  KUASAR_LAB_SCRATCH=$(mktemp -d /tmp/kuasar-lab.XXXXXX)
  chmod 711 "$KUASAR_LAB_SCRATCH"
}

# lab_run BIN COMMAND...: runs COMMAND with the lab's environment; BIN holds the sandboxer. With
# KUASAR_LAB_HIDE_UNIFIED set COMMAND, and so every daemon of the lab, lives in a mount namespace
# without cgroup v2's mount beside v1's hierarchies, which forky's crun refuses.
lab_run() {
  local bin=$1
  shift
  if [[ -n ${KUASAR_LAB_HIDE_UNIFIED:-} ]]; then
    # shellcheck disable=SC2016 # for the inner shell
    set -- unshare --mount --propagation private bash -c \
      '! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec "$@"' lab "$@"
  fi
  KUASAR_LAB_PREFIX=$KUASAR_PREFIX KUASAR_LAB_IMAGES=$KUASAR_IMAGES KUASAR_LAB_BIN=$bin \
    KUASAR_LAB_WASMEDGE=$KUASAR_WASMEDGE \
    KUASAR_LAB_WASMTIME=$KUASAR_WASMTIME/libwasmtime.so KUASAR_LAB_MODULES=$KUASAR_MODULES \
    KUASAR_LAB_OTLP=$KUASAR_OTLP \
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
