# shellcheck shell=bash
# The private prefix .cache/prefix: programs and libraries that must not be installed. They come
# as packages through an apt root of our own below .cache/apt, so that the machine's apt state,
# its services and its container engine are never touched.

readonly PREFIX_APT=$KUASAR_CACHE/apt
readonly PREFIX_STAMP=$KUASAR_PREFIX/.stamp
readonly PREFIX_FORMAT=1
# package/suite
readonly PREFIX_CONTAINERD=containerd/forky
readonly PREFIX_PACKAGES=(
  containernetworking-plugins/forky
  runc/bookworm
  busybox/bookworm
  libcatch2-dev/bookworm-backports
)

# prefix_archive: "URI|FILE:ENTRY" of the Debian archive in the machine's own apt sources. apt
# itself parses them (both forms, comments ignored); the archive is told from other vendors' by
# the Origin and Label in its signed Release file, not by its address.
prefix_archive() {
  # shellcheck disable=SC2016 # the words in $() are apt's, not the shell's
  apt-get indextargets --format '$(REPO_URI)|$(SOURCESENTRY)' \
    'Created-By: Packages' 'Origin: Debian' 'Label: Debian' \
    'Codename: bookworm' 'Component: main' 2>/dev/null | sed -n 1p
}

# prefix_keyring URI FILE:ENTRY: the keyring file that the entry of the apt sources with this URI
# is signed by, or else Debian's own; apt does not print it. A .list file is read by the line, a
# .sources file by the stanza. A key written into the stanza itself is not a file: passed over.
prefix_keyring() {
  local file=${2%:*} line=${2##*:} found=
  case $file in
    *.sources)
      found=$(sed '/^#/d' "$file" | awk -v RS= -v uri="${1%/}" 'index($0, uri)' |
        sed -nE 's/^[Ss]igned-[Bb]y:[ \t]*(\/[^ \t]+).*/\1/p' | sed -n 1p)
      ;;
    *.list) found=$(sed -nE "${line}s/^[^#]*signed-by=(\/[^] ,]+).*/\1/p" "$file") ;;
  esac
  [[ -n $found ]] || found=/usr/share/keyrings/debian-archive-keyring.gpg
  if [[ -r $found ]]; then printf '%s' "$found"; fi
}

prefix_apt_get() {
  # Acquire settings (proxies, credentials) of the machine stay in force: only places are changed.
  apt-get -q \
    -o Dir::Etc::sourcelist="$PREFIX_APT/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::Etc::preferences=- -o Dir::Etc::preferencesparts=- \
    -o Dir::State="$PREFIX_APT/state" -o Dir::State::lists="$PREFIX_APT/lists" \
    -o Dir::State::status="$PREFIX_APT/status" \
    -o Dir::Cache="$PREFIX_APT/cache" -o Dir::Cache::archives="$PREFIX_APT/cache/archives" \
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Check-Valid-Until=false \
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
    -o APT::Update::Post-Invoke-Success::= -o APT::Architectures::="$(dpkg --print-architecture)" \
    "$@"
}

# prefix_make_apt_root [SUITE...]: with these suites beside those that everything else is from.
prefix_make_apt_root() {
  local archive uri keyring options suite
  archive=$(prefix_archive)
  if [[ -z $archive ]]; then
    # Images of Debian often come without package lists; Origin is known only after an update.
    run_logged "$KUASAR_CACHE/log/apt-update.log" apt-get -q update || die "apt-get update failed"
    archive=$(prefix_archive)
  fi
  [[ -n $archive ]] ||
    die "no Debian archive (Origin Debian, bookworm main) in this machine's apt sources"
  uri=${archive%%|*}
  keyring=$(prefix_keyring "$uri" "${archive#*|}")
  options=
  [[ -z $keyring ]] || options="[signed-by=$keyring] "
  mkdir -p "$PREFIX_APT"/{state,lists/partial,cache/archives/partial,debs}
  : >"$PREFIX_APT/status"
  for suite in bookworm bookworm-backports forky "$@"; do
    printf 'deb %s%s %s main\n' "$options" "$uri" "$suite"
  done | sort -u >"$PREFIX_APT/sources.list"
}

# prefix_version_ok PROGRAM: prints the version of a containerd binary; fails when it does not run
# or is older than 2.1.
prefix_version_ok() {
  local words version major minor
  words=$("$1" --version 2>/dev/null) || return 1
  version=$(sed -nE 's/^.* v?([0-9]+\.[0-9]+\.[0-9]+[^ ]*).*$/\1/p' <<<"$words")
  IFS=. read -r major minor _ <<<"$version"
  [[ $major =~ ^[0-9]+$ && $minor =~ ^[0-9]+$ ]] || return 1
  ((major > 2 || (major == 2 && minor >= 1))) || return 1
  printf '%s' "$version"
}

# prefix_own_containerd: the path of a containerd that makes the package unnecessary, or nothing.
prefix_own_containerd() {
  local found
  if [[ -n ${KUASAR_CONTAINERD:-} ]]; then
    prefix_version_ok "$KUASAR_CONTAINERD" >/dev/null ||
      die "KUASAR_CONTAINERD=$KUASAR_CONTAINERD is not a containerd >= 2.1 that runs here"
    realpath "$KUASAR_CONTAINERD"
    return
  fi
  found=$(type -P containerd) || return 0
  if prefix_version_ok "$found" >/dev/null; then realpath "$found"; fi
}

# prefix_link_containerd PATH: the lab looks only into the prefix, so link what lies beside PATH.
prefix_link_containerd() {
  local dir=${1%/*} name
  mkdir -p "$KUASAR_PREFIX/usr/bin"
  ln -sf "$1" "$KUASAR_PREFIX/usr/bin/containerd"
  for name in ctr containerd-shim-runc-v2; do
    [[ -x $dir/$name ]] || die "$name is missing beside $1"
    ln -sf "$dir/$name" "$KUASAR_PREFIX/usr/bin/$name"
  done
}

prefix_wanted() {
  printf 'format %s\n' "$PREFIX_FORMAT"
  printf 'own %s\n' "$1"
  printf 'want %s\n' "${PREFIX_PACKAGES[@]}" "$PREFIX_CONTAINERD"
}

# prefix_download PACKAGE/SUITE...: leaves their .deb files, and no others, in $PREFIX_APT/debs.
prefix_download() {
  local start log=$KUASAR_CACHE/log/prefix.log
  start=$(now_ms)
  prefix_make_apt_root
  run_logged "$log" prefix_apt_get update ||
    die "the private apt root could not be updated (suites bookworm, backports, forky)"
  print_step prefix "package lists of a private apt root" "$start"
  start=$(now_ms)
  rm -f "$PREFIX_APT"/debs/*.deb
  if ! (cd "$PREFIX_APT/debs" && run_logged "$log" prefix_apt_get download "$@"); then
    [[ " $* " != *" $PREFIX_CONTAINERD "* ]] || prefix_has_containerd ||
      prefix_no_containerd "which this machine's archive does not have"
    die "apt-get download failed: $*"
  fi
  print_step prefix "downloaded $*" "$start"
}

# prefix_download_closure LOG SUITE PACKAGE...: the same for packages and all that they need, the C
# library too, in that suite.
prefix_download_closure() {
  local log=$1 suite=$2
  shift 2
  prefix_make_apt_root "$suite"
  run_logged "$log" prefix_apt_get update || die "the private apt root could not be updated"
  rm -f "$PREFIX_APT"/debs/*.deb "$PREFIX_APT"/cache/archives/*.deb
  run_logged "$log" prefix_apt_get install -y --download-only --no-install-recommends -t "$suite" \
    "$@" || die "could not be downloaded from $suite: $*"
  mv "$PREFIX_APT"/cache/archives/*.deb "$PREFIX_APT/debs/"
}

# prefix_has_containerd: whether the private apt root knows the package at all.
prefix_has_containerd() {
  prefix_apt_get --print-uris download "$PREFIX_CONTAINERD" >/dev/null 2>&1
}

# prefix_no_containerd WORDS: WORDS tell what is the matter with the package.
prefix_no_containerd() {
  die "no containerd >= 2.1 to be had. Tried: KUASAR_CONTAINERD (${KUASAR_CONTAINERD:-not set})," \
    "PATH ($(type -P containerd || printf 'none')), Debian package $PREFIX_CONTAINERD" \
    "($1)." "Set KUASAR_CONTAINERD=/path/to/containerd."
}

prefix_verify() {
  local binary=$KUASAR_PREFIX/usr/bin/containerd said
  prefix_version_ok "$binary" >/dev/null && return 0
  said=$("$binary" --version 2>&1 | head -n 1) || true
  prefix_no_containerd \
    "says: ${said:-nothing}; this machine has $(ldd --version | sed -n '1s/.* /glibc /p')"
}

# prefix_unpack DIR: what was downloaded, and nothing else, into DIR.
prefix_unpack() {
  local deb
  rm -rf "$1"
  mkdir -p "$1"
  for deb in "$PREFIX_APT"/debs/*.deb; do
    dpkg-deb -x "$deb" "$1"
  done
}

# prefix_write_stamp FILE WANTED: what was asked for, and the versions that came.
prefix_write_stamp() {
  local deb
  {
    printf '%s\n' "$2"
    for deb in "$PREFIX_APT"/debs/*.deb; do
      # shellcheck disable=SC2016 # dpkg-deb's own placeholders
      dpkg-deb -W --showformat 'have ${Package} ${Version}\n' "$deb"
    done
  } >"$1.new"
  mv "$1.new" "$1"
}

# prefix_stamp_is FILE WANTED: whether FILE is the stamp of just this.
prefix_stamp_is() {
  [[ -f $1 && $(grep -vE '^have ' "$1") == "$2" ]]
}

# prefix_provide [REFRESH]: leaves a complete prefix and its stamp, or dies with no stamp.
prefix_provide() {
  local own wanted start packages=("${PREFIX_PACKAGES[@]}")
  own=$(prefix_own_containerd)
  wanted=$(prefix_wanted "$own")
  if [[ -z $1 ]] && prefix_stamp_is "$PREFIX_STAMP" "$wanted"; then return 0; fi
  packages_check_machine
  [[ -n $own ]] || packages+=("$PREFIX_CONTAINERD")
  prefix_download "${packages[@]}"
  start=$(now_ms)
  prefix_unpack "$KUASAR_PREFIX"
  [[ -z $own ]] || prefix_link_containerd "$own"
  prefix_verify
  prefix_write_stamp "$PREFIX_STAMP" "$wanted"
  print_step prefix "unpacked into .cache/prefix" "$start"
}

prefix_summary() {
  local runc
  runc=$("$KUASAR_PREFIX/usr/sbin/runc" --version | sed -n '1s/^runc version //p')
  printf 'containerd %s, runc %s, Catch2, images' \
    "$(prefix_version_ok "$KUASAR_PREFIX/usr/bin/containerd")" "$runc"
}
