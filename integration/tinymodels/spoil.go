package tinymodels

import (
	"bytes"
	"fmt"
	"os"

	"github.com/lesskv/lesskv/weights/gguf"
)

// Spoil makes NaN of a row of a matrix, F32 or F16, in a model's file: of what the matrix computes, one number is none.
func Spoil(path, tensor string, row int) error {
	f, err := gguf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, ok := f.Tensor(tensor)
	if !ok {
		return fmt.Errorf("%s has no tensor %s", path, tensor)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	bytesOfRow := info.Size / int64(info.Elements()/info.Dims[0])
	_, err = file.WriteAt(bytes.Repeat([]byte{0xff}, int(bytesOfRow)), info.Offset+int64(row)*bytesOfRow)
	return err
}
