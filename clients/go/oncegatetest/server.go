// Package oncegatetest runs the real server as a child of a test process:
//
//	func TestAnswersOnce(t *testing.T) {
//		gate, server := oncegatetest.Start(t)
//		…
//		server.Kill()
//	}
//
// It needs the server's binary: the one that ONCEGATE_BINARY names, or oncegate on the PATH.
package oncegatetest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/oncegate/oncegate/clients/go/internal/pb/oncegate/v1"
	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// watch kills the server and deletes its files as soon as the test process is gone, however that ended:
// only then does the pipe on its standard input reach its end.
const watch = `read -r _ || { kill -KILL "$1"; rm -rf "$2"; }`

// A Server has a database of its own, and ends with its test. Its address stays the same over restarts.
type Server struct {
	t         testing.TB
	binary    string
	folder    string
	arguments []string
	admin     pb.AdminServiceClient

	mu      sync.Mutex
	process *exec.Cmd
	drains  bool
	stdout  io.ReadCloser
	watcher *exec.Cmd
	pipe    io.Closer
}

// Start starts a server, with further arguments for oncegate serve, and makes a gate for it. Both end with
// the test.
func Start(t testing.TB, arguments ...string) (*oncegate.Gate, *Server) {
	t.Helper()
	folder, err := os.MkdirTemp("", "oncegate-") // a socket's path is short, and that of t.TempDir may not be
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, folder: folder, arguments: arguments}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	if s.binary, err = binary(); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	s.admin = pb.NewAdminServiceClient(conn)
	t.Cleanup(s.Kill)
	s.Start()
	return s.Gate(), s
}

func binary() (string, error) {
	if named := os.Getenv("ONCEGATE_BINARY"); named != "" {
		return named, nil
	}
	found, err := exec.LookPath("oncegate")
	if err != nil {
		return "", errors.New("no oncegate server here: put it on the PATH, or set ONCEGATE_BINARY")
	}
	return found, nil
}

// Gate makes another gate for the server, which is closed with the test.
func (s *Server) Gate(options ...oncegate.GateOption) *oncegate.Gate {
	s.t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	defaults := []oncegate.GateOption{oncegate.WithServer(s.Address()), oncegate.WithLogger(quiet)}
	gate, err := oncegate.New(append(defaults, options...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(gate.Close)
	return gate
}

// Address is for [oncegate.WithServer] and ONCEGATE_SERVER.
func (s *Server) Address() string { return "unix:" + filepath.Join(s.folder, "socket") }

// Log is that of the server so far.
func (s *Server) Log() string {
	log, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(log)
}

func (s *Server) logFile() string { return filepath.Join(s.folder, "log") }

// Start starts the server again on the same database: after [Server.Kill], or after [Server.Drain], whose end
// it waits for.
func (s *Server) Start() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil && !s.drains {
		s.t.Fatal("the server runs already; Restart replaces it")
	}
	s.wait()
	if err := s.spawn(); err != nil {
		s.t.Fatalf("the server did not start: %v\n%s", err, s.Log())
	}
}

func (s *Server) spawn() error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	database := "sqlite://" + filepath.Join(s.folder, "oncegate.db")
	s.drains = false
	arguments := append([]string{"serve", "--listen", s.Address(), "--database-url", database}, s.arguments...)
	s.process = exec.Command(s.binary, arguments...)
	s.process.Stderr = log
	// Settings of the tests' own environment are for its clients.
	s.process.Env = slices.DeleteFunc(os.Environ(), func(setting string) bool {
		return strings.HasPrefix(setting, "ONCEGATE_")
	})
	if s.stdout, err = s.process.StdoutPipe(); err != nil {
		return err
	}
	if err := s.process.Start(); err != nil {
		s.process = nil
		return err
	}
	s.watcher = exec.Command("sh", "-c", watch, "sh", fmt.Sprint(s.process.Process.Pid), s.folder)
	s.watcher.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C would end it before it is needed
	if s.pipe, err = s.watcher.StdinPipe(); err != nil {
		return err
	}
	if err := s.watcher.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(s.stdout).ReadBytes('\n')
	if !bytes.Contains(line, []byte(" listens on ")) {
		return fmt.Errorf("it says %q: %w", line, err)
	}
	return nil
}

// Kill ends the server by SIGKILL, and waits until it is gone.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signal(syscall.SIGKILL)
	s.wait()
}

// Restart kills the server, if it runs, and starts it on the same database.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.Start()
}

// Drain asks the server to end, by SIGTERM. Turns stay with their holders. [Server.Start] waits for its end.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drains = true
	s.signal(syscall.SIGTERM)
}

// Mute stops the server's process: its connections stay open, and nothing answers.
func (s *Server) Mute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signal(syscall.SIGSTOP)
}

// Unmute lets the process of a muted server continue.
func (s *Server) Unmute() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signal(syscall.SIGCONT)
}

// signal is called with the lock.
func (s *Server) signal(signal os.Signal) {
	if s.process != nil {
		_ = s.process.Process.Signal(signal) // fails if it has ended
	}
}

// wait is called with the lock. A server that does not end in time is killed.
func (s *Server) wait() {
	if s.process != nil {
		timer := time.AfterFunc(20*time.Second, func() { _ = s.process.Process.Kill() })
		_ = s.process.Wait()
		timer.Stop()
		s.process = nil
	}
	if s.watcher != nil {
		_ = s.watcher.Process.Kill()
		_ = s.watcher.Wait()
		_ = s.pipe.Close()
		s.watcher = nil
	}
}
