package main

import (
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

var (
	servers   sync.Map // by port
	cancelled atomic.Int64
)

func receive(stream grpc.ServerStream) ([]byte, error) {
	var message []byte
	err := stream.RecvMsg(&message)
	return message, err
}

func unary(name any, stream grpc.ServerStream) error {
	request, err := receive(stream)
	if err != nil {
		return err
	}
	stream.SetTrailer(metadata.Pairs("x-sum", strconv.Itoa(len(request))))
	switch string(request) {
	case "fail":
		return status.Error(codes.NotFound, "there is none: é")
	case "wait":
		<-stream.Context().Done()
		cancelled.Add(1)
		return stream.Context().Err()
	}
	reply := append([]byte(name.(string)+" "), request...)
	return stream.SendMsg(&reply)
}

// So many times; without end for "forever".
func serverStream(_ any, stream grpc.ServerStream) error {
	request, err := receive(stream)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(string(request))
	for i := 0; err != nil || i < count; i++ {
		reply := []byte(strconv.Itoa(i))
		if failed := stream.SendMsg(&reply); failed != nil {
			cancelled.Add(1)
			return failed
		}
	}
	return nil
}

// All in one.
func clientStream(_ any, stream grpc.ServerStream) error {
	var all []byte
	for {
		request, err := receive(stream)
		if err == io.EOF {
			return stream.SendMsg(&all)
		} else if err != nil {
			return err
		}
		all = append(all, request...)
	}
}

// Each as it comes.
func bothStream(_ any, stream grpc.ServerStream) error {
	for {
		request, err := receive(stream)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&request); err != nil {
			return err
		}
	}
}

var description = grpc.ServiceDesc{
	ServiceName: service,
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{
		{StreamName: "Unary", Handler: unary},
		{StreamName: "ServerStream", Handler: serverStream, ServerStreams: true},
		{StreamName: "ClientStream", Handler: clientStream, ClientStreams: true},
		{StreamName: "BothStream", Handler: bothStream, ServerStreams: true, ClientStreams: true},
	},
}

func serve(command values) (values, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:"+command["port"])
	if err != nil {
		return nil, err
	}
	options := []grpc.ServerOption{grpc.ForceServerCodec(codec{}), grpc.MaxRecvMsgSize(most)}
	if age, err := strconv.Atoi(command["age"]); err == nil {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge: time.Duration(age) * time.Millisecond,
		}))
	}
	server := grpc.NewServer(options...)
	server.RegisterService(&description, command["name"])
	servers.Store(command["port"], server)
	go func() { _ = server.Serve(listener) }()
	return nil, nil
}

func stop(command values) (values, error) {
	server, _ := servers.Load(command["port"])
	server.(*grpc.Server).GracefulStop()
	return nil, nil
}

func countCancelled(values) (values, error) {
	return values{"value": strconv.FormatInt(cancelled.Load(), 10)}, nil
}
