// Go's gRPC, client and server, by commands (see commands.go). Messages are bytes.
//
// serve: `port`, `name`, and `age`: the milliseconds after which a connection is told to go away.
// stop: of the server at `port`, in order.
// cancelled: how many calls the server has seen cancelled.
// call: `method` with `text` to `address`; `deadline` in milliseconds. The answer, or the error's
// code and message.
// burst: `count` calls to `address`, `concurrency` at a time, each with a text of its own of `size`
// bytes: how many were answered ("right"), how many by another's answer ("wrong"), and how often
// there was which error ("error CODE").
// forms: a call of each form to `address`, with `count` messages of `size` bytes.
// cancel: begins a call that has no end, and takes it back behind the first message.
package main

const (
	service = "test.Echo"
	most    = 64 << 20 // bytes of a message
)

// As they are.
type codec struct{}

func (codec) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }
func (codec) Name() string                        { return "bytes" }
func (codec) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func main() {
	serveCommands(map[string]handler{
		"serve":     serve,
		"stop":      stop,
		"cancelled": countCancelled,
		"call":      call,
		"burst":     burst,
		"forms":     forms,
		"cancel":    cancel,
	})
}
