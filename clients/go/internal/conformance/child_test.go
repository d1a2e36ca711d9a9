package conformance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sync"
)

// A childClient is a client in a process of its own, which can be killed: this program again.
type childClient struct {
	*lineProcess
	isDead bool
}

const childVariable = "ONCEGATE_TEST_CHILD"

func newChildClient(name, server string, options object) (*childClient, error) {
	arguments, err := json.Marshal([]any{name, server, options})
	if err != nil {
		return nil, err
	}
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), childVariable+"="+string(arguments))
	lines, err := startLines(command)
	return &childClient{lineProcess: lines}, err
}

func (c *childClient) do(step object) any {
	if _, ok := step["die"]; ok {
		c.kill()
		<-c.ended
		c.isDead = true
		return nil
	}
	result, err := c.ask("step", object{"step": step})
	if err != nil {
		return object{"error": object{"kind": "unexpected", "message": err.Error()}}
	}
	return result
}

func (c *childClient) close() {
	if !c.isDead {
		_, _ = c.ask("close", nil)
	}
	c.lineProcess.close()
}

// runChild is the process of a childClient. It exits when its standard input ends.
func runChild(arguments string) error {
	var given []any
	if err := json.Unmarshal([]byte(arguments), &given); err != nil {
		return err
	}
	client, err := newLocalClient(given[0].(string), given[1].(string), given[2].(object))
	if err != nil {
		return err
	}
	var mu sync.Mutex
	print := func(line object) {
		mu.Lock()
		defer mu.Unlock()
		data, _ := json.Marshal(line)
		fmt.Println(string(data))
	}
	print(object{"ready": true})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var request object
		if err := json.Unmarshal(lines.Bytes(), &request); err != nil {
			return err
		}
		go func() {
			if request["do"] == "close" {
				client.close()
				print(object{"id": request["id"], "ok": nil})
				return
			}
			print(object{"id": request["id"], "ok": client.do(request["step"].(object))})
		}()
	}
	return lines.Err()
}
