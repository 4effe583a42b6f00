package lesskv

import llama "github.com/go-skynet/go-llama.cpp"

// A Message is a turn of a chat. Role is "system", "user" or "assistant".
type Message = llama.LESSKVMessage

// ChatPrompt returns the text of a chat, for Predict, in the form of the model's own template, with the assistant's turn begun. It fails with
// ErrMissing where the model has no template, or none of the usual ones: llama.cpp recognises those by pieces of
// their text, and runs no template. The text of a control token in a message becomes that token. It may be called while the model serves a call.
func ChatPrompt(model *llama.LLama, messages ...Message) (string, error) {
	return model.LESSKVChat(messages, true)
}
