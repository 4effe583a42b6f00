#include "lesskv-gguf.h"

#include "lesskv.h"

#include "llama-impl.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include <sys/stat.h>

lesskv_gguf::lesskv_gguf(const std::string & path) : path(path) {
    struct stat st;
    const bool there = stat(path.c_str(), &st) == 0;
    if (there && !S_ISREG(st.st_mode)) { // not opened: that of a pipe waits for who writes to it
        throw std::runtime_error(format("the adapter %s is not a file: give the path of a .gguf file", path.c_str()));
    }
    f.reset(there ? fopen(path.c_str(), "rb") : nullptr);
    if (!f) {
        throw std::runtime_error(format("the adapter %s can't be opened: %s", path.c_str(), strerror(errno)));
    }
    size = st.st_size;
    if (size == 0) {
        damaged("it is empty");
    }
    header();
}

const lesskv_gguf::tensor * lesskv_gguf::find(const std::string & name) const {
    const auto it = tensors.find(name);
    return it == tensors.end() ? nullptr : &it->second;
}

std::vector<uint8_t> lesskv_gguf::data(const tensor & t) {
    std::vector<uint8_t> buf(t.size);
    seek(start + t.offset);
    read(buf.data(), buf.size());
    return buf;
}

std::string lesskv_gguf::sha256() {
    lesskv_sha256 sha;
    lesskv_sha256_init(&sha);
    std::vector<uint8_t> buf(1 << 16);
    for (seek(0); left() > 0;) {
        const size_t n = std::min<int64_t>(left(), buf.size());
        read(buf.data(), n);
        lesskv_sha256_update(&sha, buf.data(), n);
    }
    char hex[65];
    lesskv_sha256_final(&sha, hex);
    return hex;
}

uint32_t lesskv_gguf::u32(const char * key, uint32_t min, uint32_t max) const {
    const uint32_t n = u32(key);
    if (n < min || n > max) {
        bad(key, std::to_string(n), format("%u to %u", min, max));
    }
    return n;
}

uint32_t lesskv_gguf::u32(const char * key) const {
    return find_value(key, GGUF_TYPE_UINT32).number;
}

const std::string & lesskv_gguf::str(const char * key) const {
    return find_value(key, GGUF_TYPE_STRING).text;
}

void lesskv_gguf::want(const char * key, uint32_t wanted) const {
    if (u32(key) != wanted) {
        bad(key, std::to_string(u32(key)), std::to_string(wanted));
    }
}

void lesskv_gguf::want(const char * key, const char * wanted) const {
    if (str(key) != wanted) {
        bad(key, "\"" + str(key) + "\"", format("\"%s\"", wanted));
    }
}

bool lesskv_gguf::is_array(const char * key) const {
    const auto it = values.find(key);
    return it != values.end() && it->second.type == GGUF_TYPE_ARRAY;
}

const std::vector<uint32_t> & lesskv_gguf::array_of(const char * key, gguf_type elem, uint64_t n, const char * what) const {
    const auto & v = find_value(key, GGUF_TYPE_ARRAY);
    if (v.elem != (uint32_t) elem || v.words.size() != n) {
        const char * name = gguf_type_name((gguf_type) v.elem);
        bad(key, format("an array of %zu %s", v.words.size(), name ? name : "?"), format("one %s for each of %llu %s", gguf_type_name(elem), (unsigned long long) n, what));
    }
    return v.words;
}

void lesskv_gguf::bad(const std::string & what, const std::string & found, const std::string & wanted) const {
    throw std::runtime_error(format("the adapter %s does not fit: %s is %s, wanted %s", path.c_str(), what.c_str(), found.c_str(), wanted.c_str()));
}

void lesskv_gguf::damaged(const std::string & why) const {
    throw std::runtime_error(format("the adapter %s is no whole GGUF file: %s; copy or make it again", path.c_str(), why.c_str()));
}

void lesskv_gguf::seek(uint64_t to) {
    if (to > (uint64_t) size || fseeko(f.get(), (off_t) to, SEEK_SET) != 0) {
        damaged(format("byte %llu of %lld is asked for", (unsigned long long) to, (long long) size));
    }
    pos = (int64_t) to;
}

void lesskv_gguf::read(void * dst, size_t n) {
    if (n > (uint64_t) left() || fread(dst, 1, n, f.get()) != n) {
        damaged(format("it ends within %zu bytes at %lld", n, (long long) pos));
    }
    pos += (int64_t) n;
}

template <class T> T lesskv_gguf::number() {
    T x;
    read(&x, sizeof(x));
    return x;
}

std::string lesskv_gguf::text(const char * what, uint64_t max) {
    const uint64_t n = number<uint64_t>();
    if (n > (uint64_t) left() || n > max) {
        damaged(format("%s of %llu bytes at %lld", what, (unsigned long long) n, (long long) pos));
    }
    std::string s(n, 0);
    read(&s[0], n);
    return s;
}

uint64_t lesskv_gguf::size_of(uint32_t type) {
    switch (type) {
        case GGUF_TYPE_UINT8:  case GGUF_TYPE_INT8:  case GGUF_TYPE_BOOL:    return 1;
        case GGUF_TYPE_UINT16: case GGUF_TYPE_INT16:                         return 2;
        case GGUF_TYPE_UINT32: case GGUF_TYPE_INT32: case GGUF_TYPE_FLOAT32: return 4;
        case GGUF_TYPE_UINT64: case GGUF_TYPE_INT64: case GGUF_TYPE_FLOAT64: return 8;
        default:                                                             return 0;
    }
}

void lesskv_gguf::skip(uint64_t n, uint64_t each) {
    if (n > (uint64_t) left()/each) {
        damaged(format("%llu values at %lld", (unsigned long long) n, (long long) pos));
    }
    seek(pos + n*each);
}

void lesskv_gguf::array(value & v) {
    const uint32_t type = number<uint32_t>();
    const uint64_t n    = number<uint64_t>();
    v.elem = type;
    if (type == GGUF_TYPE_UINT32 || type == GGUF_TYPE_FLOAT32) {
        if (n > (uint64_t) left()/sizeof(v.words[0])) {
            damaged(format("%llu values at %lld", (unsigned long long) n, (long long) pos));
        }
        v.words.resize(n);
        read(v.words.data(), n*sizeof(v.words[0]));
    } else if (type == GGUF_TYPE_STRING) {
        for (uint64_t i = 0; i < n; ++i) { // ends at the file's end at the latest
            skip(number<uint64_t>(), 1);
        }
    } else if (size_of(type) > 0) {
        skip(n, size_of(type));
    } else {
        damaged(format("an array of unknown type %u at %lld", type, (long long) pos));
    }
}

void lesskv_gguf::header() {
    char magic[4];
    read(magic, sizeof(magic));
    if (memcmp(magic, "GGUF", 4) != 0) {
        bad("the magic", "not GGUF", "a GGUF file");
    }
    const uint32_t version = number<uint32_t>();
    if (version != 2 && version != 3) {
        bad("the GGUF version", std::to_string(version), "2 or 3, little-endian");
    }
    const uint64_t n_tensors = number<uint64_t>();
    const uint64_t n_values  = number<uint64_t>();
    for (uint64_t i = 0; i < n_values; ++i) {
        const std::string key = text("a key", UINT16_MAX);
        if (key.empty()) {
            damaged(format("a key at %lld has no name", (long long) pos));
        }
        value v;
        v.type = number<uint32_t>();
        if (v.type == GGUF_TYPE_UINT32) {
            v.number = number<uint32_t>();
        } else if (v.type == GGUF_TYPE_STRING) {
            v.text = text("a string", 1 << 26);
        } else if (v.type == GGUF_TYPE_ARRAY) {
            array(v);
        } else if (size_of(v.type) > 0) {
            skip(1, size_of(v.type));
        } else {
            damaged(format("%s has the unknown type %u", key.c_str(), v.type));
        }
        if (!values.emplace(key, std::move(v)).second) {
            damaged(format("%s is there twice", key.c_str()));
        }
    }
    uint32_t align = GGUF_DEFAULT_ALIGNMENT;
    if (values.count("general.alignment")) {
        align = u32("general.alignment");
        if (align == 0 || (align & (align - 1)) != 0) {
            bad("general.alignment", std::to_string(align), "a power of two");
        }
    }
    uint64_t next = 0, end = 0; // tensors follow each other
    for (uint64_t i = 0; i < n_tensors; ++i) {
        const std::string name = text("a name", GGML_MAX_NAME - 1);
        tensor t;
        const uint32_t n_dims = number<uint32_t>();
        if (n_dims > 4) {
            damaged(format("%s has %u dimensions", name.c_str(), n_dims));
        }
        for (uint32_t d = 0; d < n_dims; ++d) {
            t.ne[d] = number<uint64_t>();
        }
        const uint32_t type = number<uint32_t>();
        t.type   = type < GGML_TYPE_COUNT ? (ggml_type) type : GGML_TYPE_COUNT; // no other is a value of the enum
        t.offset = number<uint64_t>();
        t.size   = size_of(name, t);
        if (!tensors.emplace(name, t).second) {
            damaged(format("%s is there twice", name.c_str()));
        }
        if (t.offset != next) {
            damaged(format("%s is at %llu of the data, where %llu was expected", name.c_str(), (unsigned long long) t.offset, (unsigned long long) next));
        }
        next = (t.offset + t.size + align - 1)/align*align; // neither is more than the file's size, nor is align than 2^31
        end  = t.offset + t.size;
    }
    start = ((uint64_t) pos + align - 1)/align*align;
    if (n_tensors > 0 && (start > (uint64_t) size || end > (uint64_t) size - start)) {
        damaged(format("its tensors take %llu bytes from %llu on, of %lld", (unsigned long long) end, (unsigned long long) start, (long long) size));
    }
}

uint64_t lesskv_gguf::size_of(const std::string & name, const tensor & t) const {
    const bool known = t.type == GGML_TYPE_F32 || t.type == GGML_TYPE_F16 || t.type == GGML_TYPE_Q8_0;
    uint64_t bytes = known && t.ne[0] <= INT32_MAX ? lesskv_row_size((lesskv_type) t.type, (int64_t) t.ne[0]) : 0;
    if (bytes == 0) {
        bad(name, format("of type %d and %llu wide", (int) t.type, (unsigned long long) t.ne[0]), "rows of f32, f16 or q8_0");
    }
    for (int d = 1; d < 4; ++d) {
        if (t.ne[d] == 0 || bytes > (uint64_t) size/t.ne[d]) {
            damaged(format("%s is larger than the file, or empty", name.c_str()));
        }
        bytes *= t.ne[d];
    }
    return bytes;
}

const lesskv_gguf::value & lesskv_gguf::find_value(const char * key, gguf_type type) const {
    const auto it = values.find(key);
    if (it == values.end()) {
        bad(key, "missing", gguf_type_name(type));
    }
    if (it->second.type != (uint32_t) type) {
        bad(key, gguf_type_name((gguf_type) it->second.type), gguf_type_name(type));
    }
    return it->second;
}
