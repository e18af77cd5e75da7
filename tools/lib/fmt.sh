# shellcheck shell=bash
# tools/dev fmt: clang-format over every C++ file.

# shellcheck source=tools/lib/sources.sh
. "$KUASAR_LIB/sources.sh"

fmt_usage() {
  cat <<'TEXT'
usage: tools/dev fmt [--check] [FILE...]

Formats FILEs, or every C++ file of the project, with clang-format 14 and .clang-format.
  --check   changes nothing; names what is not formatted and exits 1 when there is any
TEXT
}

fmt_main() {
  local check='' files=() start
  while (($#)); do
    case $1 in
      -h | --help) fmt_usage; return 0 ;;
      --check) check=1 ;;
      -*) die "fmt: unknown option '$1'; tools/dev fmt --help lists them" ;;
      *) files+=("$(realpath -- "$1")") ;;
    esac
    shift
  done
  command -v clang-format-14 >/dev/null || die "clang-format-14 is missing: run tools/dev setup"
  start=$(now_ms)
  cd "$KUASAR_ROOT" || return
  ((${#files[@]})) || mapfile -t files < <(cxx_files "$KUASAR_ROOT")
  if [[ -n $check ]]; then
    fmt_violations "$KUASAR_ROOT" "${files[@]}" || return 1
  else
    printf '%s\n' "${files[@]}" | xargs -r -d '\n' -P "$(nproc)" -n 20 clang-format-14 -i
  fi
  print_step fmt "${#files[@]} files" "$start"
}

# fmt_violations ROOT FILE...: prints "file:line: [format] ..." for the first difference of each
# file that is not formatted; returns 1 when there is one.
fmt_violations() {
  local root=$1 found
  shift
  found=$(cd "$root" && printf '%s\n' "$@" |
    xargs -r -d '\n' -P "$(nproc)" -n 10 clang-format-14 --dry-run --ferror-limit=1 2>&1 |
    sed -nE 's/^([^:]+:[0-9]+):[0-9]+: .*clang-format.*/\1: [format] run tools\/dev fmt/p' |
    sort -u -t : -k 1,1)
  [[ -n $found ]] || return 0
  printf '%s\n' "$found"
  return 1
}
