// A Go program with two ways to the network: C's connect through cgo, which a preloaded library
// can reach, and Go's own net package, which makes system calls itself and cannot be reached.
//
//	client IP PORT IP PORT: the first for cgo, the second for package net.
package main

/*
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>
#include <unistd.h>

// A connected socket, or -errno.
static int connect_to(const char *ip, uint16_t port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	inet_pton(AF_INET, ip, &to.sin_addr);
	return connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0 ? fd : -errno;
}
*/
import "C"

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func fetch(stream io.ReadWriter) string {
	fmt.Fprint(stream, "GET /whoami HTTP/1.0\r\nHost: interop\r\n\r\n")
	response, err := io.ReadAll(stream)
	if err != nil {
		return err.Error()
	}
	_, body, _ := strings.Cut(string(response), "\r\n\r\n")
	return strings.TrimSpace(body)
}

func main() {
	port, _ := strconv.Atoi(os.Args[2])
	fd := C.connect_to(C.CString(os.Args[1]), C.uint16_t(port))
	if fd < 0 {
		fmt.Println("cgo", syscall.Errno(-fd))
		os.Exit(1)
	}
	file := os.NewFile(uintptr(fd), "socket")
	fmt.Println("cgo", fetch(file))
	file.Close()

	connection, err := net.Dial("tcp", net.JoinHostPort(os.Args[3], os.Args[4]))
	if err != nil {
		fmt.Println("net", err)
		os.Exit(1)
	}
	fmt.Println("net", fetch(connection))
	connection.Close()
}
