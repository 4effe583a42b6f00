// lesskv-gguf.h: the reader of adapters' files ("The adapter file" in algorithm.md).

#pragma once

#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

// A GGUF file of which nothing is believed: gguf.h's own reader ends the process at some damaged files. Only what
// adapters are made of is kept: u32 and string values, arrays of u32 and f32, and up to four dimensions of tensors. Every failure is a
// std::runtime_error that names the file, the key or tensor, what was found and what was wanted.
class lesskv_gguf {
public:
    explicit lesskv_gguf(const std::string & path);

    struct tensor {
        ggml_type type = GGML_TYPE_COUNT;
        uint64_t  ne[4] = { 1, 1, 1, 1 };
        uint64_t  offset = 0; // from the start of the data
        uint64_t  size   = 0; // bytes
    };

    const tensor * find(const std::string & name) const; // NULL: there is none
    size_t n_tensors() const { return tensors.size(); }
    std::vector<uint8_t> data(const tensor & t);
    std::string sha256(); // of the file, hex

    bool has(const char * key) const { return values.count(key) > 0; }
    bool is_array(const char * key) const; // false too where there is no such key
    uint32_t u32(const char * key) const;
    uint32_t u32(const char * key, uint32_t min, uint32_t max) const; // one of min .. max
    const std::string & str(const char * key) const;
    // n elements, u32 or f32 by their bits; what: of which things each has one.
    const std::vector<uint32_t> & array_of(const char * key, gguf_type elem, uint64_t n, const char * what) const;
    void want(const char * key, uint32_t wanted) const;
    void want(const char * key, const char * wanted) const;

    [[noreturn]] void bad(const std::string & what, const std::string & found, const std::string & wanted) const;

private:
    struct free_file { void operator()(FILE * f) const { fclose(f); } };

    struct value {
        uint32_t    type;
        uint32_t    number = 0;
        std::string text;
        uint32_t    elem = GGUF_TYPE_COUNT; // of an array
        std::vector<uint32_t> words;        // its elements, if they are u32 or f32
    };

    [[noreturn]] void damaged(const std::string & why) const;

    int64_t left() const { return size - pos; }
    void seek(uint64_t to);
    void read(void * dst, size_t n);
    template <class T> T number();
    std::string text(const char * what, uint64_t max);
    void skip(uint64_t n, uint64_t each);
    void array(value & v);
    void header();

    static uint64_t size_of(uint32_t type); // 0: not a number
    uint64_t size_of(const std::string & name, const tensor & t) const; // the bytes of a tensor, of a type that the format has
    const value & find_value(const char * key, gguf_type type) const;

    const std::string path;
    std::unique_ptr<FILE, free_file> f;
    int64_t  size = 0, pos = 0;
    uint64_t start = 0; // of the tensors' data
    std::map<std::string, value>  values;
    std::map<std::string, tensor> tensors;
};
