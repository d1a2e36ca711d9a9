// Command testreport reads what go test -json prints. It shows on stderr what failed or was skipped, with its
// output, and prints the numbers of tests and their parts that passed, and that did not: a skipped one has shown
// nothing.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	good, bad, err := report(os.Stdin, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(good, bad)
}

// An event is a line of go test -json.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// name is a test, a package, or what is built: packages with their tests have another path there.
func (e *event) name() string {
	return strings.TrimSpace(e.Package + e.ImportPath + " " + e.Test)
}

func report(log io.Reader, shown io.Writer) (good, bad int, err error) {
	outputs := map[string]string{} // of what has not ended
	show := func(name string) {
		fmt.Fprintf(shown, "--- %s\n%s", name, outputs[name])
		delete(outputs, name)
	}
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadString('\n')
		var e event
		switch {
		case err == io.EOF && line == "":
			return good, bad, nil
		case err != nil && err != io.EOF:
			return good, bad, err
		case json.Unmarshal([]byte(line), &e) != nil:
			fmt.Fprint(shown, line) // such as of a linker
			continue
		}
		switch e.Action {
		case "output", "build-output":
			outputs[e.name()] += e.Output
		case "pass":
			delete(outputs, e.name())
			if e.Test != "" {
				good++
			}
		case "fail", "skip", "build-fail":
			if e.Test != "" {
				bad++
			} else if e.Action == "skip" {
				continue // a package without tests
			} else {
				showUnended(e.Package, outputs, show)
			}
			show(e.name())
		}
	}
}

// showUnended shows the tests that ran when their package failed, such as by a panic or its time limit.
func showUnended(pkg string, outputs map[string]string, show func(name string)) {
	var unended []string
	for name := range outputs {
		if pkg != "" && strings.HasPrefix(name, pkg+" ") {
			unended = append(unended, name)
		}
	}
	slices.Sort(unended)
	for _, name := range unended {
		show(name)
	}
}
