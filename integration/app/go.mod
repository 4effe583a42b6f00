module example.com/app

go 1.24.0

require github.com/go-skynet/go-llama.cpp v0.0.0-20240314183750-6a8041ef6b46
