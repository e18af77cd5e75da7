# shellcheck shell=bash
# tools/dev check: the laws of docs/STYLE.md and docs/ARCHITECTURE.md that a script can see.

# shellcheck source=tools/lib/sources.sh
. "$KUASAR_LIB/sources.sh"
# shellcheck source=tools/lib/fmt.sh
. "$KUASAR_LIB/fmt.sh"

check_usage() {
  cat <<'TEXT'
usage: tools/dev check [--self-test]

Prints one "file:line: [rule] reason" per violation and exits 1 when there is any.
  layer-include, layer-link      a layer of common/ knows only what stands below it
  sandboxer-include              no sandboxer includes another; common/ includes none
  grpc-include, toml-include, kernel-include, include-path, pragma-once, using-namespace
  pack-any, detached, fork, shell, unfinished, columns, file-length, format
  keeper-size                    all of common/keeper/exe has at most 950 lines
  shellcheck                     what shellcheck warns of in our scripts, where it is installed
  readme-config                  README.md shows containerd's drop-in and the RuntimeClass as they are
  machine-path                   no path or package host of the machine this was written on

  --self-test   plants one violation of every rule in a copy of the tree and expects all found
TEXT
}

check_main() {
  local start found
  case ${1:-} in
    -h | --help) check_usage; return 0 ;;
    --self-test) check_self_test; return ;;
    '') ;;
    *) die "check: unknown option '$1'; tools/dev check --help lists them" ;;
  esac
  start=$(now_ms)
  found=$(check_tree "$KUASAR_ROOT")
  if [[ -n $found ]]; then
    printf '%s\n' "$found"
    print_step check "$(wc -l <<<"$found") violations" "$start"
    return 1
  fi
  print_step check "no violations in $(source_files "$KUASAR_ROOT" | wc -l) files" "$start"
}

# check_tree ROOT: every violation in the tree below ROOT, one per line, sorted by file.
check_tree() {
  (
    cd "$1" || exit
    mapfile -t all < <(source_files .)
    mapfile -t cxx < <(printf '%s\n' "${all[@]}" | grep -E '\.(cc|h)$' || true)
    mapfile -t layers < <(printf '%s\n' "${all[@]}" |
      grep -xE '(common/[a-z]+|[a-z]+-sandboxer)/CMakeLists\.txt' || true)
    {
      ((${#cxx[@]} == 0)) || awk -f "$KUASAR_LIB/check.awk" "${cxx[@]}"
      ((${#layers[@]} == 0)) || awk -f "$KUASAR_LIB/check_cmake.awk" "${layers[@]}"
      check_scripts_length "${all[@]}"
      check_scripts "${all[@]}"
      check_machine_paths "${all[@]}"
      check_readme_config packaging/containerd/kuasar-runc.toml toml
      check_readme_config packaging/kubernetes/kuasar-runc.yaml yaml
      if command -v clang-format-14 >/dev/null; then fmt_violations . "${cxx[@]}" || true; fi
    } | sort -t : -k 1,1 -k 2,2n
  )
}

# check_scripts FILE...: what shellcheck warns of in our scripts. A variable that only another
# script uses (SC2034) is none of it.
check_scripts() {
  local scripts
  command -v shellcheck >/dev/null || return 0
  mapfile -t scripts < <(printf '%s\n' "$@" | grep -xE '.*\.sh|(\./)?(tools/dev|\.ci/run)' || true)
  ((${#scripts[@]} == 0)) ||
    shellcheck --severity=warning --exclude=SC2034 --format=gcc "${scripts[@]}" |
    sed -E 's/^([^:]+:[0-9]+):[0-9]+: [a-z]+: (.*)/\1: [shellcheck] \2/' || true
}

check_scripts_length() {
  local file lines
  for file in "$@"; do
    case $file in
      *.sh | *.awk | *.cmake | *CMakeLists.txt | tools/dev | .ci/run) ;;
      *) continue ;;
    esac
    lines=$(wc -l <"$file")
    ((lines <= 600)) || printf '%s:601: [file-length] %s lines, at most 600\n' "$file" "$lines"
  done
}

# check_readme_config FILE LANGUAGE: README.md's first block of the language is the file without its
# comments.
check_readme_config() {
  [[ -f $1 && -f README.md ]] || return 0
  diff -q <(sed -E '/^ *(#|$)/d' "$1") \
    <(awk -v fence="\`\`\`$2" '$0 == fence { on = 1; next } /^```/ && on { exit } on' README.md) \
    >/dev/null || printf '%s:1: [readme-config] README.md shows something else\n' "$1"
}

# check_hosts: the package hosts that this machine is configured for, one per line.
check_hosts() {
  {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/pip.conf "${HOME:-/}/.npmrc" \
      "${HOME:-/}/.config/pip/pip.conf" "${HOME:-/}/.pip/pip.conf" \
      "${HOME:-/}/.cargo/config.toml" /etc/npmrc /usr/etc/npmrc 2>/dev/null || true
    printf '%s\n' "${GOPROXY:-}" "${PIP_INDEX_URL:-}" "${http_proxy:-}" "${https_proxy:-}"
  } | grep -oE '[a-z+]+://[^/[:space:]"]+' | sed -E 's|.*://||; s|.*@||; s|:[0-9]+$||' |
    grep -F . | grep -vxE '127\.0\.0\.1|localhost' | sort -u || true
}

# Paths and hosts of the machine that this is written on have no place in the project.
check_machine_paths() {
  local hosts pattern
  # A bracket in each word keeps this line from finding itself.
  pattern='(^|[^A-Za-z0-9._/})-])/(w[o]rk|r[o]ot|f[a]rm)/|/tmp/(k|bash_j[o]bs)[./]'
  hosts=$(check_hosts | sed 's/[.]/[.]/g' | paste -sd '|')
  [[ -z $hosts ]] || pattern+="|(^|[^A-Za-z0-9.-])($hosts)([^A-Za-z0-9.-]|\$)"
  printf '%s\0' "$@" | xargs -0 grep -nHIE -e "$pattern" -- 2>/dev/null |
    sed -E 's/^([^:]+:[0-9]+):.*/\1: [machine-path] a path or package host of one machine/' || true
}

# check_self_test: every rule must find its planted violation, at the planted line.
check_self_test() {
  local start work found missing=0 count=0 place rule host
  start=$(now_ms)
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # the directory of now
  trap "rm -rf '$work'" EXIT
  (cd "$KUASAR_ROOT" && source_files . | tar -c -T - -f -) | tar -x -C "$work" -f -
  host=$(check_hosts | sed -n 1p)
  check_plant "$work" "$host"
  found=$(check_tree "$work")
  while read -r place rule; do
    count=$((count + 1))
    if ! grep -qF -- "$place: [$rule]" <<<"$found"; then
      printf 'check --self-test: [%s] was not found at %s\n' "$rule" "$place"
      missing=$((missing + 1))
    fi
  done <"$work/expected"
  rm -rf "$work"
  trap - EXIT
  if ((missing)); then
    print_step check "self-test: $missing of $count planted violations were missed" "$start"
    return 1
  fi
  print_step check "self-test: $count planted violations, each found at its line" "$start"
}

# plant FILE RULE LINE TEXT: FILE gets TEXT; RULE is expected to be found at LINE of it.
plant() {
  mkdir -p "$PLANT_ROOT/$(dirname "$1")"
  printf '%b\n' "$4" >"$PLANT_ROOT/$1"
  printf '%s:%s %s\n' "$1" "$3" "$2" >>"$PLANT_ROOT/expected"
}

check_plant() {
  local once='#pragma once\n\n' number layer file
  PLANT_ROOT=$1
  local pairs=(
    'base async/task.h' 'async os/spawn.h' 'os oci/spec.h' 'oci ttrpc/frame.h' 'ttrpc oci/spec.h'
    'ttrpc os/mount.h' 'task sandbox/manager.h' 'sandbox daemon/args.h' 'os ttrpc/ttrpc.pb.h'
    'base boost/asio.hpp' 'keeper ttrpc/frame.h' 'os keeper/wire.h' 'oci keeper/client.h' 'ctl daemon/args.h' 'daemon ctl/args.h'
    'otlp ttrpc/call.h' 'sandbox otlp/exporter.h'
  )
  for number in "${!pairs[@]}"; do
    layer=${pairs[number]%% *}
    plant "common/$layer/planted_$number.h" layer-include 3 \
      "$once#include \"${pairs[number]#* }\""
  done
  local links=('keeper kuasar_ttrpc' 'base kuasar_async' 'async kuasar_os' 'os kuasar_oci' 'oci kuasar_ttrpc'
    'ttrpc kuasar_oci' 'task kuasar_sandbox' 'sandbox kuasar_daemon' 'daemon gRPC::grpc++'
    'ctl kuasar_daemon' 'otlp kuasar_task')
  for number in "${!links[@]}"; do
    layer=${links[number]%% *}
    file=common/$layer/CMakeLists.txt
    [[ -f $PLANT_ROOT/$file ]] || plant "$file" layer-link 1 '# empty'
    sed -i "/^common\/$layer\/CMakeLists/d" "$PLANT_ROOT/expected"
    printf 'target_link_libraries(kuasar_%s\n  PRIVATE %s)\n' "$layer" "${links[number]#* }" \
      >>"$PLANT_ROOT/$file"
    printf '%s:%s layer-link\n' "$file" "$(wc -l <"$PLANT_ROOT/$file")" >>"$PLANT_ROOT/expected"
  done

  plant common/sandbox/planted_grpc.h grpc-include 3 "$once#include <grpcpp/server.h>"
  # With three files more than two have gRPC headers, whatever the tree itself has. The product's
  # files and the tests' are counted apart.
  for file in common/task test/unit; do
    for number in 1 2 3; do
      plant "$file/zz_planted_grpc_$number.cc" grpc-include 1 '#include <grpcpp/server.h>'
    done
  done
  sed -i '/zz_planted_grpc_[12]/d' "$PLANT_ROOT/expected"
  plant common/task/planted_toml.cc toml-include 1 '#include <toml.hpp>'
  plant common/task/planted_kernel.cc kernel-include 2 '\n#include <linux/magic.h>'
  plant runc-sandboxer/planted_mount.cc kernel-include 1 '#include <sys/mount.h>'
  plant runc-sandboxer/planted_other.cc sandboxer-include 1 '#include "wasm-sandboxer/engine.h"'
  plant quark-sandboxer/CMakeLists.txt sandboxer-include 2 \
    'kuasar_executable(quark-sandboxer SOURCES main.cc\n  LINK kuasar_runc)'
  plant common/task/planted_up.cc include-path 1 '#include "../os/fifo.h"'
  plant common/task/planted_pragma.h pragma-once 1 'int planted();'
  plant common/task/planted_using.h using-namespace 3 "${once}using namespace kuasar;"
  plant common/task/planted_pack.cc pack-any 2 '\nvoid f(Any& a, Message& m) { a.PackFrom(m); }'
  plant common/task/planted_detached.cc detached 1 'auto token = asio::detached;'
  plant tools/lib/planted_script.sh shellcheck 2 '# shellcheck shell=bash\ncd $1/$unquoted'
  plant common/task/planted_fork.cc fork 1 'int pid = ::fork();'
  plant common/task/planted_shell.cc shell 1 'int status = ::system("true");'
  plant common/task/planted_todo.cc unfinished 1 '// TO''DO: later'
  plant common/task/planted_columns.cc columns 1 "// $(printf '%0101d' 0)"
  plant common/task/planted_long.cc file-length 601 "$(printf '%.0s\\n' {1..601})"
  # Two files of 450 lines break it at the second, whatever the tree itself has; the first alone may.
  plant common/keeper/exe/aa_planted_1.cc keeper-size 0 "$(printf '%.0s\\n' {1..450})"
  plant common/keeper/exe/aa_planted_2.cc keeper-size 500 "$(printf '%.0s\\n' {1..500})"
  sed -i '/aa_planted_1/d' "$PLANT_ROOT/expected"
  printf '# as planted\nkind: Other\n' >>"$PLANT_ROOT/packaging/kubernetes/kuasar-runc.yaml"
  printf 'packaging/kubernetes/kuasar-runc.yaml:1 readme-config\n' >>"$PLANT_ROOT/expected"
  plant docs/planted_path.md machine-path 2 '\nsee /wo''rk/main'
  plant docs/planted_home.md machine-path 1 'see /ro''ot/notes'
  plant docs/planted_host.md machine-path 1 "see ${2:-/wo''rk/} there"
  command -v clang-format-14 >/dev/null || return 0
  plant common/task/planted_format.cc format 1 'int   planted ( ) ;'
}
