//go:build tools

// Programs that are built as they are.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
