// A module of its own, without Go files: what is in here (4 MB) is no part of github.com/lesskv/lesskv as apps download it.
module github.com/lesskv/lesskv/integration/testdata/checkout

go 1.24.0
