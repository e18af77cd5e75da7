# shellcheck shell=bash
# Further OCI runtimes for the lab, in .cache/runtimes: forky's runc and crun. They need a newer C
# library than this machine's, so they bring forky's, and are made to look for it where it lies.

readonly RUNTIMES_FORMAT=1
readonly RUNTIMES_STAMP=$KUASAR_RUNTIMES/.stamp
readonly RUNTIMES_PACKAGES=(
  runc/forky crun/forky
  libc6/forky libseccomp2/forky libcap2/forky libsystemd0/forky libjson-c5/forky libblake3-0/forky
)
# Below .cache/runtimes.
readonly RUNTIMES_PROGRAMS=(usr/sbin/runc usr/bin/crun)

# runtimes_wanted: the place belongs to it, as it stands in the programs.
runtimes_wanted() {
  printf 'format %s\n' "$RUNTIMES_FORMAT"
  printf 'at %s\n' "$1"
  printf 'want %s\n' "${RUNTIMES_PACKAGES[@]}"
}

# runtimes_patch DIR PROGRAM: DIR's loader and libraries for it. An RPATH, and not a RUNPATH, counts
# for the libraries of its libraries, too.
runtimes_patch() {
  local loader libc
  loader=$(find "$1/usr" -name 'ld-linux*.so.*' | sed -n 1p)
  libc=$(find "$1/usr" -name libc.so.6 | sed -n 1p)
  patchelf --set-interpreter "$loader" --force-rpath --set-rpath "${libc%/*}" "$1/$2" ||
    die "patchelf failed: $2"
  "$1/$2" --version >/dev/null || die "$1/$2 does not run"
}

# runtimes_provide [REFRESH]: leaves a complete directory and its stamp, or dies with no stamp.
runtimes_provide() {
  local start dir wanted program
  # .cache may be a link to that of another checkout.
  dir=$(realpath -m "$KUASAR_RUNTIMES")
  wanted=$(runtimes_wanted "$dir")
  if [[ -z $1 ]] && prefix_stamp_is "$RUNTIMES_STAMP" "$wanted"; then return 0; fi
  prefix_download "${RUNTIMES_PACKAGES[@]}"
  start=$(now_ms)
  prefix_unpack "$dir"
  for program in "${RUNTIMES_PROGRAMS[@]}"; do runtimes_patch "$dir" "$program"; done
  prefix_write_stamp "$RUNTIMES_STAMP" "$wanted"
  print_step runtimes "$(runtimes_summary) in .cache/runtimes" "$start"
}

runtimes_summary() {
  local program version words=()
  for program in "${RUNTIMES_PROGRAMS[@]}"; do
    version=$("$KUASAR_RUNTIMES/$program" --version | sed -nE '1s/^.* version //p')
    words+=("${program##*/} $version")
  done
  printf '%s, %s' "${words[@]}"
}
