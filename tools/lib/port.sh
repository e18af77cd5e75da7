# shellcheck shell=bash
# tools/dev port: does the tree build on the next Debian, with its compiler and its libraries?

# shellcheck source=tools/lib/packages.sh
. "$KUASAR_LIB/packages.sh"
# shellcheck source=tools/lib/prefix.sh
. "$KUASAR_LIB/prefix.sh"
# shellcheck source=tools/lib/results.sh
. "$KUASAR_LIB/results.sh"

readonly PORT=$KUASAR_CACHE/port
readonly PORT_FORMAT=1
readonly PORT_SUITE=forky
readonly PORT_STAMP=$PORT/.stamp
readonly PORT_BUILD=$KUASAR_BUILD/port
readonly PORT_PACKAGES=(
  g++ cmake ninja-build ccache pkg-config
  libboost-dev libboost-json-dev libgrpc++-dev protobuf-compiler protobuf-compiler-grpc
  libprotobuf-dev libfmt-dev libtoml11-dev libexpected-dev libsystemd-dev libcatch2-dev
  prometheus-cpp-dev
)

port_usage() {
  cat <<'TEXT'
usage: tools/dev port [--refresh]

Builds the tree and runs its unit tests on Debian forky: g++ 16, Boost 1.92, fmt 11, toml11 4. The
first run makes a root file system in .cache/port (1 GB) with mmdebstrap, which is installed when it
is missing (needs root), and a ccache beside it; the build is build/port. Nothing of the machine is
used but its kernel and the address of its Debian archive. Takes many minutes at first, and is not
part of `tools/dev test`.

  --refresh   make the root file system anew
TEXT
}

port_main() {
  local refresh=
  while (($#)); do
    case $1 in
      -h | --help) port_usage; return 0 ;;
      --refresh) refresh=1 ;;
      *) die "port: unknown option '$1'; tools/dev port --help lists them" ;;
    esac
    shift
  done
  [[ $(id -u) == 0 ]] || die "port: mounts and chroot need root"
  packages_install_missing mmdebstrap
  port_root "$refresh"
  port_build
  port_unit_tests
}

# port_root [REFRESH]: leaves a complete root file system and its stamp, or dies with no stamp.
port_root() {
  local start wanted source
  wanted=$(printf '%s\n' "format $PORT_FORMAT" "suite $PORT_SUITE" "${PORT_PACKAGES[@]}")
  if [[ -z $1 && -f $PORT_STAMP && $(<"$PORT_STAMP") == "$wanted" ]]; then return 0; fi
  start=$(now_ms)
  rm -rf "$PORT_STAMP" "$PORT_BUILD"
  rm -rf --one-file-system "$PORT/root"
  mkdir -p "$PORT/ccache"
  prefix_make_apt_root
  source=$(grep " $PORT_SUITE " "$PREFIX_APT/sources.list")
  run_logged "$KUASAR_CACHE/log/port-root.log" mmdebstrap --mode=root --variant=minbase \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="$(IFS=, && printf '%s' "${PORT_PACKAGES[*]}")" \
    "$PORT_SUITE" "$PORT/root" "$source" || die "mmdebstrap failed for $PORT_SUITE"
  printf '%s\n' "$wanted" >"$PORT_STAMP"
  print_step port "root file system of Debian $PORT_SUITE in .cache/port" "$start"
}

# port_run COMMAND...: in the root file system, with the tree read-only at /src and the build at
# /build; all mounts and processes of it end with it.
port_run() {
  # shellcheck disable=SC2016 # for the inner shell
  unshare --mount --propagation private --pid --fork --kill-child bash -c '
    set -e
    root=$1/root ccache=$1/ccache source=$2 build=$3
    shift 3
    mkdir -p "$root"/{src,build,ccache}
    mount --bind "$source" "$root/src"
    mount -o remount,bind,ro "$root/src"
    mount --bind "$build" "$root/build"
    mount --bind "$ccache" "$root/ccache"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/tmp"
    # This shell stays PID 1: a child of PID 1 takes itself for an orphan (timeout(1) ends at once).
    status=0
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 CCACHE_DIR=/ccache \
      chroot "$root" "$@" || status=$?
    exit "$status"' port "$PORT" "$KUASAR_ROOT" "$PORT_BUILD" "$@"
}

port_build() {
  local start
  start=$(now_ms)
  mkdir -p "$PORT_BUILD"
  run_logged "$KUASAR_CACHE/log/port-build.log" port_run sh -c \
    "cmake -S /src -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release -DKUASAR_BUILD_TESTS=ON &&
     cmake --build /build -j $(nproc)" || die "the tree does not build on Debian $PORT_SUITE"
  print_step port "built on $PORT_SUITE: $(port_run g++ --version | sed -n 1p)" "$start"
}

port_unit_tests() {
  local start status=0 counts
  start=$(now_ms)
  rm -f "$PORT_BUILD/unit.xml"
  run_logged "$KUASAR_CACHE/log/port-unit.log" port_run timeout -k 10 300 \
    /build/test/kuasar_unit_tests --reporter console --reporter xml::out=/build/unit.xml ||
    status=$?
  counts=$(results_counts "$PORT_BUILD/unit.xml" "$status")
  print_step port "unit tests on $PORT_SUITE: $(results_words "$counts")" "$start"
  results_failures "$PORT_BUILD/unit.xml"
  ((status == 0))
}
