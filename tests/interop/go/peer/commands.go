package main

import (
	"bufio"
	"fmt"
	"net/url"
	"os"
	"sync"
)

// Values of a command, or of an answer.
type values map[string]string

type handler func(values) (values, error)

var out sync.Mutex

func answer(of values) {
	form := url.Values{}
	for name, value := range of {
		form.Set(name, value)
	}
	out.Lock()
	defer out.Unlock()
	fmt.Println(form.Encode())
}

func carryOut(handlers map[string]handler, command values) {
	handle, known := handlers[command["op"]]
	result, err := values{}, fmt.Errorf("no such command: %s", command["op"])
	if known {
		result, err = handle(command)
	}
	if result == nil {
		result = values{}
	}
	if err != nil {
		result["error"], result["message"] = describe(err)
	}
	result["id"] = command["id"]
	answer(result)
}

// Carries out commands from standard input, one a line and all at the same time, each written as a
// form: `id=1&op=call&...`. The answers are such lines, too. Until standard input ends.
func serveCommands(handlers map[string]handler) {
	answer(values{"id": "ready"})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		form, err := url.ParseQuery(lines.Text())
		if err != nil {
			panic(err)
		}
		command := values{}
		for name := range form {
			command[name] = form.Get(name)
		}
		go carryOut(handlers, command)
	}
}
