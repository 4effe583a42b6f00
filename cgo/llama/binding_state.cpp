// The cache in a file: llama.cpp's own format for one sequence and its tokens.

#include "binding_impl.h"

#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

namespace binding {

static std::string why(const sequence & s, log_errors & errors) {
    const std::string reason = s.reason(errors);
    return reason.empty() ? "it is not a state of this model and cache" : reason;
}

static void need_cache(const sequence & s) {
    if (!llama_get_memory(s.ctx.get())) {
        fail(LLAMA_BINDING_MISSING, "the model has no cache: there is no state");
    }
}

// The file behind a path, which may be a link, and in st what it is, st_mode 0 if there is none yet. What is not a file is
// refused: it would be replaced by one.
static std::string file_behind(const std::string & path, struct stat & st) {
    struct stat link;
    if (lstat(path.c_str(), &link) != 0 && errno == ENOENT) {
        st.st_mode = 0;
        return path;
    }
    const std::unique_ptr<char, void (*)(void *)> real(realpath(path.c_str(), nullptr), free);
    if (!real || stat(real.get(), &st) != 0) {
        fail(LLAMA_BINDING_FAILED, "%s cannot be written: %s", path.c_str(), strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        fail(LLAMA_BINDING_FAILED, "%s is not a file", path.c_str());
    }
    // What a model was loaded from, by whatever name: one of its parts, an adapter, another model.
    char magic[4];
    const std::unique_ptr<FILE, int (*)(FILE *)> file(fopen(real.get(), "rb"), fclose);
    if (file && fread(magic, sizeof(magic), 1, file.get()) == 1 && memcmp(magic, GGUF_MAGIC, sizeof(magic)) == 0) {
        fail(LLAMA_BINDING_ARGUMENT, "%s is a model or an adapter (GGUF): a state does not replace it; give another path", path.c_str());
    }
    return real.get();
}

// Gives part the permissions, and where that is allowed the group, of the file that it replaces.
static bool same_access(const std::string & part, const struct stat & st) {
    const bool group = chown(part.c_str(), (uid_t) -1, st.st_gid) == 0;
    return chmod(part.c_str(), st.st_mode & (group ? 0777 : 0707)) == 0;
}

// Makes the file that becomes the state, and holds it by a lock: two models, or processes, may save to one path. One that is
// there without a lock is of a process that was killed. -1 and errno where it cannot be made.
static int open_part(const std::string & part, mode_t mode) {
    for (;;) {
        int fd = open(part.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        const bool made = fd >= 0;
        if (!made && errno == EEXIST) {
            fd = open(part.c_str(), O_RDWR | O_CLOEXEC);
            if (fd < 0 && errno == ENOENT) {
                continue;
            }
        }
        if (fd < 0) {
            return -1;
        }
        int locked;
        do {
            locked = flock(fd, LOCK_EX);
        } while (locked != 0 && errno == EINTR);
        struct stat held, there;
        const bool ours = fstat(fd, &held) == 0 && stat(part.c_str(), &there) == 0 && held.st_ino == there.st_ino && held.st_dev == there.st_dev;
        if (made && ours) {
            return fd; // a file system may have no locks
        }
        if (!made && locked != 0) {
            close(fd);
            errno = EEXIST;
            return -1;
        }
        if (ours) {
            unlink(part.c_str());
        }
        close(fd);
    }
}

// Puts on the disk which name a file has. False and errno where that fails; a file system that cannot do it for a folder is left alone.
static bool sync_folder(const std::string & path) {
    const size_t slash = path.find_last_of('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    const int fd = open(folder.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return true; // one may write in a folder that one may not read
    }
    const bool ok = fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP;
    const int why = errno;
    close(fd);
    errno = why;
    return ok;
}

void save_state(const sequence & s, const std::string & to) {
    need_cache(s);
    struct stat old;
    const std::string path = file_behind(to, old);
    const bool replaces = old.st_mode != 0; // a file has its type there
    // A write that fails leaves the file that was there.
    const std::string part = path + "." + std::to_string(getuid()) + ".part";
    const int fd = open_part(part, replaces ? 0600 : 0666);
    if (fd < 0) {
        fail(LLAMA_BINDING_FAILED, "%s cannot be written: %s", path.c_str(), strerror(errno));
    }
    const std::unique_ptr<const int, void (*)(const int *)> lock(&fd, [](const int * fd) { close(*fd); });
    // goes unless it becomes the state: a device that is gone is an exception of llama.cpp's
    std::unique_ptr<const std::string, void (*)(const std::string *)> unfinished(&part, [](const std::string * part) { remove(part->c_str()); });
    log_errors errors;
    const size_t size = llama_state_seq_save_file(s.ctx.get(), part.c_str(), 0, s.tokens.data(), s.tokens.size());
    if (size == 0) {
        const std::string reason = s.reason(errors);
        fail(LLAMA_BINDING_FAILED, "%s cannot be written%s%s", path.c_str(), reason.empty() ? "" : ": ", reason.c_str());
    }
    struct stat st; // llama.cpp does not look whether the last bytes could be written
    if (stat(part.c_str(), &st) != 0 || (size_t) st.st_size != size) {
        fail(LLAMA_BINDING_FAILED, "%s cannot be written: not all of its %zu bytes: is the disk full?", path.c_str(), size);
    }
    // what was there before stays until everything is on the disk
    if ((replaces && !same_access(part, old)) || fsync(fd) != 0 || rename(part.c_str(), path.c_str()) != 0) {
        fail(LLAMA_BINDING_FAILED, "%s cannot be written: %s", path.c_str(), strerror(errno));
    }
    unfinished.release();
    if (!sync_folder(path)) {
        fail(LLAMA_BINDING_FAILED, "%s has been written, and may be the old one after a power failure: %s", path.c_str(), strerror(errno));
    }
}

// Whether the model has these tokens.
static bool known(const sequence & s, const std::vector<llama_token> & tokens) {
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(s.ctx.get())));
    return std::all_of(tokens.begin(), tokens.end(), [n_vocab](llama_token t) { return t >= 0 && t < n_vocab; });
}

// Refuses a file whose tokens the model does not have, before anything is loaded. What is no state at all is left to llama.cpp.
static void check_tokens(const sequence & s, const std::string & path) {
    const std::unique_ptr<FILE, int (*)(FILE *)> file(fopen(path.c_str(), "rb"), fclose);
    uint32_t head[3] = {}; // magic, version, number of tokens
    if (!file || fread(head, sizeof(head), 1, file.get()) != 1 || head[0] != LLAMA_STATE_SEQ_MAGIC || head[1] != LLAMA_STATE_SEQ_VERSION ||
        (int64_t) head[2] > s.limit()) {
        return;
    }
    struct stat st;
    if (fstat(fileno(file.get()), &st) != 0 || head[2] > st.st_size/sizeof(llama_token)) {
        return; // cut short
    }
    std::vector<llama_token> tokens(head[2]);
    tokens.resize(fread(tokens.data(), sizeof(llama_token), tokens.size(), file.get()));
    if (!known(s, tokens)) {
        fail(LLAMA_BINDING_STATE, "%s is refused: it is not a state of this model, which does not have all of its tokens", path.c_str());
    }
}

void load_state(sequence & s, const std::string & path) {
    need_cache(s);
    struct stat st;
    if (stat(path.c_str(), &st) != 0) {
        fail(LLAMA_BINDING_FAILED, "%s: %s", path.c_str(), strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        fail(LLAMA_BINDING_FAILED, "%s is not a file", path.c_str());
    }
    if (access(path.c_str(), R_OK) != 0) {
        fail(LLAMA_BINDING_FAILED, "%s cannot be read: %s", path.c_str(), strerror(errno));
    }
    llama_context * ctx = s.ctx.get();
    if (s.less()) {
        check_tokens(s, path);
    }
    log_errors errors;
    // LESS takes a state whole or not at all. Any other cache is replaced piece by piece: where that fails, what was there comes back.
    std::vector<uint8_t> before(s.less() || s.tokens.empty() ? 0 : llama_state_seq_get_size(ctx, 0));
    if (!before.empty() && llama_state_seq_get_data(ctx, before.data(), before.size(), 0) != before.size()) {
        fail(LLAMA_BINDING_FAILED, "the running state cannot be kept for the case that %s is bad: %s", path.c_str(), why(s, errors).c_str());
    }
    // no more tokens than the file has room for: with LESS a context may be as large as a number can be
    std::vector<llama_token> tokens(std::min<size_t>(s.limit(), st.st_size/sizeof(llama_token)));
    size_t n_tokens = 0;
    const bool loaded = llama_state_seq_load_file(ctx, path.c_str(), 0, tokens.data(), tokens.size(), &n_tokens) != 0;
    tokens.resize(loaded ? n_tokens : 0);
    // the tokens are what the next prompt is compared with: they must be those of the cache
    if (loaded && known(s, tokens) && llama_memory_seq_pos_max(llama_get_memory(ctx), 0) + 1 == (llama_pos) tokens.size()) {
        s.replaced(std::move(tokens));
        return;
    }
    const std::string reason = why(s, errors);
    if (s.less() && !loaded) {
        fail(LLAMA_BINDING_STATE, "%s is refused: %s", path.c_str(), reason.c_str());
    }
    llama_memory_clear(llama_get_memory(ctx), true);
    if (s.less() || (!before.empty() && llama_state_seq_set_data(ctx, before.data(), before.size(), 0) != before.size())) {
        s.forget();
        fail(LLAMA_BINDING_STATE, "%s is refused: %s; the cache has been emptied", path.c_str(), reason.c_str());
    }
    fail(LLAMA_BINDING_STATE, "%s is refused: %s", path.c_str(), reason.c_str());
}

bool is_state(const std::string & path) {
    uint32_t magic = 0;
    const std::unique_ptr<FILE, int (*)(FILE *)> file(fopen(path.c_str(), "rb"), fclose);
    return file && fread(&magic, sizeof(magic), 1, file.get()) == 1 && (magic == LLAMA_STATE_SEQ_MAGIC || magic == LLAMA_SESSION_MAGIC);
}

} // namespace binding
