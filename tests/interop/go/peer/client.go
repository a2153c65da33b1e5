package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const patience = 30 * time.Second

var (
	connections = map[string]*grpc.ClientConn{}
	connecting  sync.Mutex
)

func connect(address string) (*grpc.ClientConn, error) {
	connecting.Lock()
	defer connecting.Unlock()
	if known, ok := connections[address]; ok {
		return known, nil
	}
	made, err := grpc.Dial(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(most)))
	connections[address] = made
	return made, err
}

func describe(err error) (string, string) {
	if failed, ok := status.FromError(err); ok {
		return failed.Code().String(), failed.Message()
	}
	return "Error", err.Error()
}

func within(command values) (context.Context, context.CancelFunc) {
	if deadline, err := strconv.Atoi(command["deadline"]); err == nil {
		return context.WithTimeout(context.Background(), time.Duration(deadline)*time.Millisecond)
	}
	return context.WithTimeout(context.Background(), patience)
}

func invoke(command values, text []byte) ([]byte, error) {
	connection, err := connect(command["address"])
	if err != nil {
		return nil, err
	}
	ctx, done := within(command)
	defer done()
	var reply []byte
	var trailer metadata.MD
	method := command["method"]
	if method == "" {
		method = "Unary"
	}
	err = connection.Invoke(ctx, "/"+service+"/"+method, &text, &reply, grpc.Trailer(&trailer))
	if sum := trailer.Get("x-sum"); err == nil &&
		(len(sum) != 1 || sum[0] != strconv.Itoa(len(text))) {
		return nil, fmt.Errorf("trailers: %v", trailer)
	}
	return reply, err
}

func call(command values) (values, error) {
	reply, err := invoke(command, []byte(command["text"]))
	return values{"value": string(reply)}, err
}

func judge(command values, text string) string {
	reply, err := invoke(command, []byte(text))
	if err != nil {
		code, _ := describe(err)
		return "error " + code
	}
	if strings.HasSuffix(string(reply), " "+text) {
		return "right"
	}
	return "wrong"
}

func burst(command values) (values, error) {
	count, _ := strconv.Atoi(command["count"])
	size, _ := strconv.Atoi(command["size"])
	concurrency, _ := strconv.Atoi(command["concurrency"])
	var next atomic.Int64
	var results sync.Map
	var workers sync.WaitGroup
	for i := 0; i < concurrency; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for number := next.Add(1); number <= int64(count); number = next.Add(1) {
				text := fmt.Sprintf("%s-%d", command["id"], number)
				if len(text) < size {
					text += strings.Repeat(".", size-len(text))
				}
				found, _ := results.LoadOrStore(judge(command, text), new(atomic.Int64))
				found.(*atomic.Int64).Add(1)
			}
		}()
	}
	workers.Wait()
	answer := values{}
	results.Range(func(name, number any) bool {
		answer[name.(string)] = strconv.FormatInt(number.(*atomic.Int64).Load(), 10)
		return true
	})
	return answer, nil
}

func begin(ctx context.Context, address, form string) (grpc.ClientStream, error) {
	connection, err := connect(address)
	if err != nil {
		return nil, err
	}
	both := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	return connection.NewStream(ctx, both, "/"+service+"/"+form)
}

func sendAll(stream grpc.ClientStream, messages [][]byte) error {
	for i := range messages {
		if err := stream.SendMsg(&messages[i]); err != nil {
			return err
		}
	}
	return stream.CloseSend()
}

// Sends messages while answers come, and compares these.
func exchange(address, form string, messages, expected [][]byte) error {
	ctx, done := context.WithTimeout(context.Background(), patience)
	defer done()
	stream, err := begin(ctx, address, form)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- sendAll(stream, messages) }()
	for i := 0; ; i++ {
		var reply []byte
		switch err := stream.RecvMsg(&reply); {
		case err == io.EOF && i == len(expected):
			return <-sent
		case err != nil:
			return fmt.Errorf("%s, answer %d: %w", form, i, err)
		case i >= len(expected) || !bytes.Equal(reply, expected[i]):
			return fmt.Errorf("%s, answer %d is another one", form, i)
		}
	}
}

func forms(command values) (values, error) {
	count, _ := strconv.Atoi(command["count"])
	size, _ := strconv.Atoi(command["size"])
	address := command["address"]
	numbers, messages := make([][]byte, count), make([][]byte, count)
	for i := range messages {
		numbers[i] = []byte(strconv.Itoa(i))
		messages[i] = bytes.Repeat([]byte{byte('a' + i%26)}, size)
	}
	all := [][]byte{bytes.Join(messages, nil)}
	if err := exchange(address, "ServerStream", [][]byte{[]byte(command["count"])}, numbers); err != nil {
		return nil, err
	}
	if err := exchange(address, "ClientStream", messages, all); err != nil {
		return nil, err
	}
	return values{"value": "right"}, exchange(address, "BothStream", messages, messages)
}

func cancel(command values) (values, error) {
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	stream, err := begin(ctx, command["address"], "ServerStream")
	if err != nil {
		return nil, err
	}
	if err := sendAll(stream, [][]byte{[]byte("forever")}); err != nil {
		return nil, err
	}
	var reply []byte
	if err := stream.RecvMsg(&reply); err != nil {
		return nil, err
	}
	return values{"value": string(reply)}, nil
}
