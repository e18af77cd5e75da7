# shellcheck shell=bash
# The build dependencies, all of the machine's own Debian release.

readonly KUASAR_BUILD_PACKAGES=(
  g++ cmake ninja-build ccache lld pkg-config git ca-certificates
  clang-14 clang-format-14 clang-tidy-14 libclang-rt-14-dev llvm-14
  wasi-libc libclang-rt-14-dev-wasm32
  libboost1.81-dev libboost-json1.81-dev
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev
  libfmt-dev libtoml11-dev libexpected-dev libsystemd-dev prometheus-cpp-dev
  patchelf iptables iproute2 procps mount util-linux
  mmdebstrap systemd-container python3-pip shellcheck
)

# Used by tests that say SKIPPED without them.
readonly KUASAR_OPTIONAL_PACKAGES=(criu python3-prometheus-client)

# packages_missing NAME...: those that are not installed, one per line.
packages_missing() {
  local installed name
  # Names that dpkg has never heard of make dpkg-query fail; they are simply not in its answer.
  installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' \
    "$@" 2>/dev/null || true)
  for name in "$@"; do
    grep -qxF "ii  $name" <<<"$installed" || printf '%s\n' "$name"
  done
}

packages_check_machine() {
  local codename
  codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-unknown}")
  [[ $codename == bookworm ]] ||
    die "setup knows the packages of Debian 12 (bookworm); this machine says '$codename'"
}

# packages_install_missing NAME...
packages_install_missing() {
  local missing start
  mapfile -t missing < <(packages_missing "$@")
  ((${#missing[@]})) || return 0
  packages_check_machine
  [[ $(id -u) == 0 ]] ||
    die "not root, and these packages are missing: ${missing[*]}"

  start=$(now_ms)
  run_logged "$KUASAR_CACHE/log/apt-update.log" \
    apt-get -q -o DPkg::Lock::Timeout=300 update || die "apt-get update failed"
  print_step packages "apt-get update" "$start"

  start=$(now_ms)
  run_logged "$KUASAR_CACHE/log/apt-install.log" \
    apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
    install --no-install-recommends "${missing[@]}" ||
    die "apt-get install failed: ${missing[*]}"
  print_step packages "installed ${#missing[@]}: ${missing[*]}" "$start"
}

# Each for itself: one that the archive does not have keeps no other away.
packages_install_optional() {
  local name start
  [[ $(id -u) == 0 ]] || return 0
  for name in $(packages_missing "${KUASAR_OPTIONAL_PACKAGES[@]}"); do
    start=$(now_ms)
    if run_logged "$KUASAR_CACHE/log/apt-optional-$name.log" \
      apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
      install --no-install-recommends "$name"; then
      print_step packages "optional: $name" "$start"
    else
      print_step packages "optional and not to be had: $name" "$start"
    fi
  done
}
