# The laws that one line of C++ can break; `tools/dev check` runs this over every .cc and .h.
# Prints "file:line: [rule] what is wrong". FILENAME is relative to the root of the project.

BEGIN {
  # The link order of common/: a layer may include itself and what its row names.
  may["base"] = " base "
  may["async"] = " base async "
  may["os"] = " base async os "
  may["keeper"] = " base async os keeper "
  may["oci"] = " base async os oci "
  may["ttrpc"] = " base async ttrpc "
  may["task"] = " base async os keeper oci ttrpc task "
  may["sandbox"] = " base async os keeper oci ttrpc task sandbox "
  may["ctl"] = " base async os ttrpc ctl "
  may["bench"] = may["ctl"] "bench "
  may["otlp"] = " base async otlp "
  may["daemon"] = " base async os keeper oci ttrpc task sandbox otlp daemon "
  max_lines = 600
  # kuasar-keeper lives for as long as the node: all its own files together.
  max_keeper_lines = 950
  max_columns = 100
  max_grpc_files = 2
}

function report(rule, text) {
  printf "%s:%d: [%s] %s\n", FILENAME, FNR, rule, text
}

function finish_file() {
  if (file == "") return
  if (header && !pragma_once) printf "%s:1: [pragma-once] a header starts with #pragma once\n", file
  if (lines > max_lines) {
    printf "%s:%d: [file-length] %d lines; a file has one subject and at most %d lines\n",
           file, max_lines + 1, lines, max_lines
  }
  if (file !~ /^common\/keeper\/exe\//) return
  if (keeper_lines <= max_keeper_lines && keeper_lines + lines > max_keeper_lines) {
    printf "%s:%d: [keeper-size] common/keeper/exe has over %d lines: make it simpler\n",
           file, max_keeper_lines - keeper_lines + 1, max_keeper_lines
  }
  keeper_lines += lines
}

function start_file() {
  finish_file()
  file = FILENAME
  header = file ~ /\.h$/
  pragma_once = 0
  layer = ""
  sandboxer = ""
  split(file, part, "/")
  if (part[1] == "common") layer = part[2]
  if (part[1] ~ /-sandboxer$/) sandboxer = part[1]
  in_test = part[1] == "test"
  base_name = file
  sub(/.*\//, "", base_name)
}

function check_include(name, quoted, top, n) {
  n = split(name, part, "/")
  top = n > 1 ? part[1] : ""
  if (layer != "" && quoted && (top in may) && index(may[layer], " " top " ") == 0)
    report("layer-include", "common/" layer " must not include \"" name "\"")
  if (top ~ /-sandboxer$/ && top != sandboxer && !in_test)
    report("sandboxer-include", "\"" name "\" belongs to another sandboxer")
  if (name ~ /\.\.\//)
    report("include-path", "include from the layer's root, not with ../: " name)
  if (name ~ /\.grpc\.pb\.h$/ || name ~ /^grpc(pp|\+\+)?\//) check_grpc(name)
  if (name ~ /^toml(11)?(\/.*)?\.hpp$/ || name ~ /^toml(11)?\//) {
    if (base_name !~ /_config\.cc$/ && base_name != "toml_reader.cc")
      report("toml-include", "TOML only in *_config.cc and toml_reader.cc")
  }
  if (name ~ /^linux\// || name == "sys/mount.h" || name == "sched.h" ||
      name == "sys/syscall.h" || name == "sys/prctl.h") {
    if (layer != "os" && !in_test && file !~ /^common\/sandbox\/exe\// &&
        file !~ /^common\/keeper\/exe\// && file !~ /^wasm-sandboxer\/worker\//)
      report("kernel-include", "<" name "> only in common/os, programs that are no daemon, and tests")
  }
  if (name ~ /\.pb\.h$/ && (layer == "base" || layer == "async" || layer == "os" || layer == "keeper" ||
                              layer == "oci"))
    report("layer-include", "common/" layer " must not know protobuf: " name)
  if (layer == "base" && name ~ /^boost\//)
    report("layer-include", "common/base must not include Boost: " name)
}

function check_grpc(name) {
  if (header) {
    report("grpc-include", "gRPC headers never in a .h: " name)
    return
  }
  if (file in grpc_files) return
  # The daemons' services, the exporter of spans and kuasar-bench (clients), and the tests: each
  # counted for itself.
  program = in_test ? "test" : layer == "bench" || layer == "otlp" ? layer : "daemon"
  grpc_files[file] = ++grpc_count[program]
  if (grpc_count[program] > max_grpc_files) {
    report("grpc-include", "gRPC headers in more than " max_grpc_files " .cc files; the others: " \
           grpc_list[program])
  } else {
    grpc_list[program] = grpc_list[program] (grpc_count[program] == 1 ? "" : ", ") file
  }
}

FNR == 1 { start_file() }
{ lines = FNR }

/^[ \t]*#[ \t]*pragma[ \t]+once/ { pragma_once = 1 }

/^[ \t]*#[ \t]*include[ \t]*[<"]/ {
  name = $0
  sub(/^[^<"]*[<"]/, "", name)
  sub(/[>"].*/, "", name)
  check_include(name, $0 ~ /include[ \t]*"/)
  next
}

{
  code = $0
  sub(/\/\/.*/, "", code)
}

length($0) > max_columns && $0 !~ /R"/ && !in_raw {
  report("columns", length($0) " columns; the limit is " max_columns)
}
/R"[A-Za-z]*\(/ { in_raw = 1 }
/\)[A-Za-z]*"/ { in_raw = 0 }

code ~ /PackFrom[ \t]*\(/ && base_name !~ /^pack_any\./ {
  report("pack-any", "Any::PackFrom writes a type prefix that breaks containerd: use pack_any")
}
code ~ /asio::detached/ && layer != "async" && !in_test {
  report("detached", "no detached coroutine: TaskGroup::spawn")
}
code ~ /(^|[^A-Za-z0-9_.>])fork[ \t]*\(\)/ && file != "common/os/clone_child.cc" && !in_test &&
file !~ /^common\/sandbox\/exe\// && file !~ /^common\/keeper\/exe\// {
  report("fork", "never fork a threaded process: os/spawn.h")
}
code ~ /(^|[^A-Za-z0-9_.>])(system|popen)[ \t]*\(/ && !in_test {
  report("shell", "no shell: os/spawn.h takes an argv")
}
code ~ /using[ \t]+namespace/ && header && !in_test {
  report("using-namespace", "no using-directive in a header")
}
/TODO|FIXME|(^|[^X])XXX([^X]|$)/ { report("unfinished", "finish it or open an issue") }

END { finish_file() }
