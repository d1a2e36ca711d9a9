package conformance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"time"
)

// A lineProcess is asked by lines of JSON on its standard input, and answers by lines.
type lineProcess struct {
	command  *exec.Cmd
	stdin    io.WriteCloser
	greeting object
	ended    chan struct{}

	mu      sync.Mutex
	next    int
	waiting map[int]chan object
	log     []byte
}

// A processError is an answer of a process that it cannot do what it was asked.
type processError struct{ text string }

func (e *processError) Error() string { return e.text }

func startLines(command *exec.Cmd) (*lineProcess, error) {
	p := &lineProcess{command: command, waiting: map[int]chan object{}, ended: make(chan struct{})}
	stdin, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.stdin, command.Stderr = stdin, p
	if err := command.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 16<<20)
	if !lines.Scan() {
		_ = command.Process.Kill()
		_ = command.Wait()
		return nil, fmt.Errorf("%s ended before it was ready:\n%s", command.Path, p.Log())
	}
	if err := json.Unmarshal(lines.Bytes(), &p.greeting); err != nil {
		return nil, err
	}
	go p.read(lines)
	return p, nil
}

// Write keeps the end of the standard error, for a failure's report.
func (p *lineProcess) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, data...)
	p.log = p.log[max(0, len(p.log)-20_000):]
	return len(data), nil
}

func (p *lineProcess) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.log)
}

func (p *lineProcess) read(lines *bufio.Scanner) {
	for lines.Scan() {
		var answer object
		if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
			panic(err)
		}
		p.mu.Lock()
		waiting := p.waiting[number(answer["id"])]
		delete(p.waiting, number(answer["id"]))
		p.mu.Unlock()
		waiting <- answer
	}
	_ = p.command.Wait()
	close(p.ended)
}

func (p *lineProcess) ask(do string, arguments object) (any, error) {
	answered := make(chan object, 1)
	p.mu.Lock()
	p.next++
	request := object{"id": p.next, "do": do}
	for name, argument := range arguments {
		request[name] = argument
	}
	p.waiting[p.next] = answered
	line, err := json.Marshal(request)
	if err == nil {
		_, err = p.stdin.Write(append(line, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		return nil, &processError{err.Error()}
	}
	select {
	case answer := <-answered:
		if problem, ok := answer["error"].(string); ok {
			return nil, &processError{problem}
		}
		return answer["ok"], nil
	case <-p.ended:
		return nil, &processError{p.command.Path + " has ended"}
	}
}

func (p *lineProcess) kill() { _ = p.command.Process.Kill() }

// close ends its input, upon which it exits.
func (p *lineProcess) close() {
	_ = p.stdin.Close()
	timer := time.AfterFunc(20*time.Second, p.kill)
	defer timer.Stop()
	<-p.ended
}
