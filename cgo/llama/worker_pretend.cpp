// worker_pretend.cpp: a device for tests of what no machine at hand has: this machine's CPU, under another backend's name and without an operation.

#include "worker.h"

#include "ggml-backend-impl.h"

namespace {

struct pretended {
    std::string         name, lacks;
    ggml_backend_reg    reg;
    ggml_backend_device device;
    ggml_backend_dev_t  cpu;
} pretend;

} // namespace

ggml_backend_dev_t worker::pretended_device(const std::string & name, const std::string & lacks) {
    auto & p = pretend;
    p.name   = name;
    p.lacks  = lacks;
    p.cpu    = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    p.device = *p.cpu;
    p.reg    = *p.cpu->reg;

    p.device.reg     = &p.reg;
    p.reg.iface.get_name    = [](ggml_backend_reg_t) { return pretend.name.c_str(); };
    p.device.iface.get_name = [](ggml_backend_dev_t) { return pretend.name.c_str(); };
    p.device.iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
    p.device.iface.get_props = [](ggml_backend_dev_t, ggml_backend_dev_props * props) {
        pretend.cpu->iface.get_props(pretend.cpu, props);
        props->name = pretend.name.c_str();
        props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
    };
    p.device.iface.init_backend = [](ggml_backend_dev_t dev, const char * params) {
        auto * backend  = pretend.cpu->iface.init_backend(pretend.cpu, params);
        backend->device = dev;
        return backend;
    };
    p.device.iface.supports_op = [](ggml_backend_dev_t, const ggml_tensor * op) {
        return ggml_op_desc(op) != pretend.lacks && pretend.cpu->iface.supports_op(pretend.cpu, op);
    };
    return &p.device;
}
