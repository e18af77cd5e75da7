# The link lines of common/*/CMakeLists.txt: what a layer names must be allowed for it.
# Also those of the sandboxers, which know common/ and nothing of each other.
# Prints "file:line: [rule] ...". FILENAME is relative to the root of the project.

BEGIN {
  may["base"] = " fmt::fmt fmt::fmt-header-only tl::expected Threads::Threads "
  may["async"] = " kuasar_base Boost::headers Boost::boost Threads::Threads "
  may["os"] = " kuasar_base kuasar_async PkgConfig::KUASAR_SYSTEMD "
  may["keeper"] = " kuasar_base kuasar_async kuasar_os "
  may["oci"] = " kuasar_base kuasar_async kuasar_os Boost::json "
  may["ttrpc"] = " kuasar_base kuasar_async kuasar_proto protobuf::libprotobuf "
  may["task"] = " kuasar_base kuasar_async kuasar_os kuasar_keeper kuasar_oci kuasar_ttrpc " \
                "kuasar_proto "
  may["sandbox"] = may["task"] "kuasar_task kuasar_proto_controller_grpc gRPC::grpc++_unsecure "
  may["ctl"] = " kuasar_base kuasar_async kuasar_os kuasar_ttrpc kuasar_proto Boost::json " \
               "toml11::toml11 "
  may["bench"] = may["ctl"] "kuasar_ctl kuasar_proto_cri_grpc gRPC::grpc++_unsecure "
  may["otlp"] = " kuasar_base kuasar_async kuasar_proto kuasar_proto_otlp_grpc gRPC::grpc++_unsecure "
  may["daemon"] = may["task"] "kuasar_task kuasar_sandbox kuasar_otlp toml11::toml11 PkgConfig::SYSTEMD " \
                  "PkgConfig::LIBSYSTEMD PkgConfig::KUASAR_SYSTEMD PkgConfig::KUASAR_PROMETHEUS "
}

FNR == 1 {
  split(FILENAME, part, "/")
  layer = part[1] == "common" ? part[2] : ""
  own = part[1]
  call = ""
  linking = 0
}

{
  sub(/#.*/, "")
  gsub(/\(/, " ( ")
  gsub(/\)/, " ) ")
  n = split($0, word, " ")
  for (i = 1; i <= n; i++) take(word[i])
}

function take(token, kind) {
  if (layer == "") {
    kind = token
    if ((sub(/^kuasar_/, "", kind) || sub(/-sandboxer.*/, "", kind)) &&
        kind ~ /^(runc|wasm|vmm|quark)$/ && kind "-sandboxer" != own)
      printf "%s:%d: [sandboxer-include] %s belongs to another sandboxer\n", FILENAME, FNR, token
    return
  }
  if (token == "(") { depth++; return }
  if (token == ")") {
    if (--depth == 0) { call = ""; linking = 0 }
    return
  }
  if (depth == 0) { call = token; linking = 0; return }
  if (call == "kuasar_layer" && token == "LINK") { linking = 1; return }
  if (call == "kuasar_layer" && token == "SOURCES") { linking = 0; return }
  if (call == "target_link_libraries" && token ~ /^(PUBLIC|PRIVATE|INTERFACE)$/) {
    linking = 1
    return
  }
  if (linking && index(may[layer], " " token " ") == 0)
    printf "%s:%d: [layer-link] common/%s must not link %s\n", FILENAME, FNR, layer, token
}
