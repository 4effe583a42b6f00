// devices.h: the devices that a model's layers can be put on: those of RPC servers, and this machine's.

#pragma once

#include "ggml-backend.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
extern "C" ggml_backend_reg_t ggml_backend_vk_reg(void) __attribute__((weak)); // the backend vulkan's
#endif

namespace devices {

// Which devices the runtime was built for, whether or not there are any.
struct backends {
    bool local   = false; // this machine's
    bool servers = false; // of RPC servers

    bool any() const { return local || servers; }
};

inline backends built_for() {
    backends all;
    for (size_t i = 0; i < ggml_backend_reg_count(); i++) {
        const char * name = ggml_backend_reg_name(ggml_backend_reg_get(i));
        if (strcmp(name, "RPC") == 0) {
            all.servers = true;
        } else if (strcmp(name, "CPU") != 0 && strcmp(name, "BLAS") != 0) {
            all.local = true;
        }
    }
#ifdef __linux__
    all.local |= ggml_backend_vk_reg != nullptr; // without a driver it is not listed
#endif
    return all;
}

// This machine's, in the order in which llama.cpp counts them: each once, whatever the backends that see it, and integrated GPUs only
// where there is no other.
inline std::vector<ggml_backend_dev_t> local() {
    for (const auto type : { GGML_BACKEND_DEVICE_TYPE_GPU, GGML_BACKEND_DEVICE_TYPE_IGPU }) {
        std::vector<ggml_backend_dev_t> list;
        std::set<std::string> seen;
        for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
            ggml_backend_dev_t dev = ggml_backend_dev_get(i);
            if (ggml_backend_dev_type(dev) == type) {
                ggml_backend_dev_props props;
                ggml_backend_dev_get_props(dev, &props);
                if (!props.device_id || seen.insert(props.device_id).second) {
                    list.push_back(dev);
                }
            }
        }
        if (!list.empty()) {
            return list;
        }
    }
    return {};
}

// Those of the servers, "host:port" with commas between them. Throws std::runtime_error; ggml aborts where none answers.
inline std::vector<ggml_backend_dev_t> remote(const std::string & servers) {
    std::vector<ggml_backend_dev_t> list;
    for (size_t at = 0; at < servers.size();) {
        const size_t      end    = std::min(servers.find(',', at), servers.size());
        const std::string server = servers.substr(at, end - at);
        const size_t      colon  = server.rfind(':');
        char *            rest   = nullptr;
        const long        port   = colon == std::string::npos ? 0 : strtol(server.c_str() + colon + 1, &rest, 10);
        if (colon == std::string::npos || colon == 0 || server.find(':') != colon || *rest || port < 1 || port > 65535) {
            throw std::runtime_error("RPC server \"" + server + "\": want host:port, or several with commas between them");
        }
        ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
        if (!rpc) {
            throw std::runtime_error("this runtime has no RPC backend: assemble it with -backend rpc");
        }
        const auto add = reinterpret_cast<ggml_backend_reg_t (*)(const char *)>(ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server"));
        ggml_backend_reg_t reg = add(server.c_str());
        for (size_t i = 0; reg && i < ggml_backend_reg_dev_count(reg); i++) {
            list.push_back(ggml_backend_reg_dev_get(reg, i));
        }
        at = end + 1;
    }
    return list;
}

// All of them, servers first as llama.cpp has it, and a NULL behind: llama_model_params.devices. Throws as remote does.
inline std::vector<ggml_backend_dev_t> all(const std::string & servers) {
    std::vector<ggml_backend_dev_t> list = remote(servers);
    for (ggml_backend_dev_t dev : local()) {
        list.push_back(dev);
    }
    list.push_back(nullptr);
    return list;
}

} // namespace devices
