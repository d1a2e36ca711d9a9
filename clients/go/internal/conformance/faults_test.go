package conformance

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

const team = "T1"

// A fault of one group overlaps those of the others. Cuts are frequent, and so are releases by force, of
// which not all find a lease.
var (
	networkFaults = []string{"cut", "cut", "hold", "hold", "cut_before_data", "cut_before_data", "refuse"}
	serverFaults  = []string{"kill", "drain", "mute", "lose", "lose"}
	clientFaults  = []string{"pause"}
	allFaults     = slices.Concat(networkFaults, serverFaults, clientFaults)
)

// A faulter does random faults of one group, one after the other, until it is stopped.
type faulter struct {
	testbed  *testbed
	replica  int
	kinds    []string
	chance   *rand.Rand
	history  *history
	sessions []string
	stop     chan struct{}

	done []string
	err  error
}

// withFaults runs work under faults of these kinds, in so many replicas. It returns what was done.
func withFaults(b *testbed, seed uint64, h *history, sessions, kinds []string, faulty int, work func()) ([]string, error) {
	stop := make(chan struct{})
	var faulters []*faulter
	add := func(replica int, group []string) {
		chosen := slices.DeleteFunc(slices.Clone(group), func(kind string) bool { return !slices.Contains(kinds, kind) })
		if len(chosen) > 0 {
			chance := rand.New(rand.NewPCG(seed, uint64(len(faulters)+1)))
			faulters = append(faulters, &faulter{
				testbed: b, replica: replica, kinds: chosen, chance: chance, history: h, sessions: sessions, stop: stop,
			})
		}
	}
	for replica := range faulty {
		add(replica, networkFaults)
		add(replica, serverFaults)
	}
	add(0, clientFaults)
	var running sync.WaitGroup
	for _, f := range faulters {
		running.Go(f.run)
	}
	work()
	close(stop)
	running.Wait()
	var done []string
	for _, f := range faulters {
		if f.err != nil {
			return nil, f.err
		}
		done = append(done, f.done...)
	}
	for replica := range faulty { // a cut may still be armed
		if _, err := b.ask("cut", object{"replica": replica}); err != nil {
			return nil, err
		}
	}
	return done, nil
}

func (f *faulter) between(low, high time.Duration) time.Duration {
	return low + time.Duration(f.chance.Float64()*float64(high-low))
}

// sleep returns false once the faults are to stop.
func (f *faulter) sleep(low, high time.Duration) bool {
	select {
	case <-time.After(f.between(low, high)):
		return true
	case <-f.stop:
		return false
	}
}

func (f *faulter) of(choices ...string) string { return choices[f.chance.IntN(len(choices))] }

func (f *faulter) run() {
	least, most := 200*time.Millisecond, 2*time.Second
	if slices.Contains(f.kinds, "pause") {
		least, most = 2*time.Second, 5*time.Second
	}
	var next []string
	for f.err == nil && f.sleep(least, most) {
		if len(next) == 0 { // so each of them happens
			next = slices.Clone(f.kinds)
			f.chance.Shuffle(len(next), func(i, j int) { next[i], next[j] = next[j], next[i] })
		}
		f.done = append(f.done, next[0])
		f.fault(next[0])
		next = next[1:]
	}
}

func (f *faulter) ask(command string, arguments object) object {
	if f.err != nil {
		return nil
	}
	all := object{"replica": f.replica}
	for name, argument := range arguments {
		all[name] = argument
	}
	answer, err := f.testbed.ask(command, all)
	if err != nil && command != "lose" { // a server that is down cannot release a session
		f.err = fmt.Errorf("%s: %w", command, err)
	}
	found, _ := answer.(object)
	return found
}

func (f *faulter) fault(kind string) {
	switch kind {
	case "kill", "drain":
		f.ask(kind, nil)
		f.ask("restart", object{"after_ms": f.chance.IntN(600)})
	case "cut":
		f.cut()
	case "hold": // what is held arrives late, or never
		direction := object{"direction": f.of("both", "to_client", "to_server")}
		f.ask("hold", direction)
		f.sleep(100*time.Millisecond, 1500*time.Millisecond)
		if f.chance.IntN(2) == 0 {
			f.cut()
		}
		f.ask("release", direction)
	case "cut_before_data":
		f.ask(kind, object{"direction": f.of("to_client", "to_server"), "skip": f.chance.IntN(6)})
	case "mute":
		f.ask("mute", nil)
		f.sleep(100*time.Millisecond, 1200*time.Millisecond)
		f.ask("unmute", nil)
	case "lose":
		f.lose(f.of(f.sessions...))
	case "refuse":
		f.ask("refuse", nil)
		f.ask("cut", nil)
		f.sleep(100*time.Millisecond, 2500*time.Millisecond)
		f.ask("accept", nil)
	case "pause":
		f.err = standStill(f.between(200*time.Millisecond, 2*time.Second))
	}
}

func (f *faulter) cut() { f.ask("cut", object{"side": f.of("both", "client", "server")}) }

func (f *faulter) lose(session string) {
	answer := f.ask("lose", object{"team": team, "session": session})
	if answer["released"] == true {
		f.history.note(func() {
			before, after := number(answer["fence_before"]), number(answer["fence"])
			f.history.forced = append(f.history.forced, forced{session, int64(before), int64(after)})
		})
	}
}

// standStill stops this whole process: neither timers nor messages are seen meanwhile.
func standStill(time time.Duration) error {
	script := fmt.Sprintf("kill -STOP %d; sleep %.3f; kill -CONT %[1]d", os.Getpid(), time.Seconds())
	return exec.Command("sh", "-c", script).Run()
}
