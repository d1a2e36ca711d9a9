package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/oncegate/oncegate/clients/go/oncegate"
)

// Random runs: handlers of the same events in the same sessions, by several gates, while the server has
// random faults. The seed repeats a failure: ONCEGATE_TEST_SEED=7 go test -run Random ./internal/conformance

const (
	randomRunCount    = 500
	deliveriesOfEvent = 3
	randomTTL         = 2 * time.Second
	atOnce            = 48
	gateCount         = 6
	sessionCount      = 12
	sliceTime         = 50 * time.Millisecond
	settleLimit       = 240 * time.Second // on a busy machine
	randomMaxAttempts = 4
	// hopelessEvents: of so many events, one fails always.
	hopelessEvents = 50
)

// A plan is one delivery, and what its handler does.
type plan struct {
	run            int
	event, session string
	gate           int
	wait           time.Duration
	slices         int
	checks, fails  bool
}

func planOf(run, event int, chance *rand.Rand) plan {
	return plan{
		run:     run,
		event:   fmt.Sprintf("event-%d", event),
		session: fmt.Sprintf("session-%d", event%sessionCount),
		gate:    chance.IntN(gateCount),
		wait:    []time.Duration{0, 2 * time.Second, 5 * time.Second}[chance.IntN(3)],
		slices:  []int{0, 1, 5, 50}[chance.IntN(4)],
		checks:  chance.IntN(2) == 0,
		fails:   chance.IntN(10) == 0 || event%hopelessEvents == 0,
	}
}

// plansOf are deliveries in a random order that keeps those of an event near each other.
func plansOf(runs int, chance *rand.Rand) []plan {
	type place struct {
		event int
		at    float64
	}
	places := make([]place, runs)
	for i := range places {
		event := i / deliveriesOfEvent
		places[i] = place{event, float64(event) + 30*chance.Float64()}
	}
	slices.SortFunc(places, func(one, other place) int {
		if one.at < other.at {
			return -1
		}
		return 1
	})
	plans := make([]plan, runs)
	for run := range plans {
		plans[run] = planOf(run, places[run].event, chance)
	}
	return plans
}

// trustedEnd is read anew if time passed between its two readings.
func trustedEnd(turn *oncegate.Turn) time.Time {
	for {
		before := time.Now()
		left := turn.Left()
		if now := time.Now(); now.Sub(before) < 5*time.Millisecond {
			return now.Add(left)
		}
	}
}

func (p *plan) handle(ctx context.Context, turn *oncegate.Turn, h *history) (string, error) {
	b := &ranBody{
		run: p.run, event: p.event, session: p.session, checks: p.checks,
		entered: time.Now(), attempt: turn.Attempt(), fence: turn.Fence(), trustedAtEntry: trustedEnd(turn),
	}
	defer func() {
		b.left, b.trusted = time.Now(), trustedEnd(turn)
		h.note(func() { h.bodies = append(h.bodies, b) })
	}()
	interrupted := ctx.Done()
	if p.checks {
		interrupted = nil
	}
	for range p.slices {
		select {
		case <-time.After(sliceTime):
		case <-interrupted:
			return "", context.Cause(ctx)
		}
		if p.checks {
			checked := time.Now()
			if err := turn.Check(); err != nil {
				return "", err
			}
			b.writes = append(b.writes, written{checked, trustedEnd(turn)})
		}
	}
	if p.fails {
		return "", &ownError{"it fails"}
	}
	return fmt.Sprintf("run %d", p.run), nil
}

// deliver runs the plans, so many at once.
func deliver(plans []plan, servers []string, h *history) error {
	gates := make([]*oncegate.Gate, gateCount)
	for i := range gates {
		gate, err := oncegate.New(
			oncegate.WithServer(servers[i%len(servers)]),
			oncegate.WithHolder(fmt.Sprintf("gate-%d", i)),
			oncegate.TTL(randomTTL), oncegate.WithGrace(randomTTL/2), oncegate.Patience(2500*time.Millisecond),
			oncegate.MaxAttempts(randomMaxAttempts),
			oncegate.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil))),
		)
		if err != nil {
			return err
		}
		defer gate.Close()
		gates[i] = gate
	}
	next := make(chan plan)
	var workers sync.WaitGroup
	defer h.beat()()
	for range atOnce {
		workers.Go(func() {
			for p := range next {
				d := oncegate.Delivery{Team: team, Event: p.event, Session: oncegate.Session{ID: p.session}}
				handler := func(ctx context.Context, turn *oncegate.Turn) (string, error) { return p.handle(ctx, turn, h) }
				out, err := oncegate.Run(context.Background(), gates[p.gate], d, handler, oncegate.Wait(p.wait))
				h.note(func() { h.answers = append(h.answers, answered{p.run, p.event, out, err, time.Now()}) })
			}
		})
	}
	for _, p := range plans {
		h.note(func() { h.planned = append(h.planned, p.run) })
		next <- p
	}
	close(next)
	workers.Wait()
	return nil
}

// settle delivers what is not settled again and again, as senders do.
func settle(runs int, servers []string, h *history) error {
	chance := rand.New(rand.NewPCG(uint64(runs), 0))
	for deadline := time.Now().Add(settleLimit); time.Now().Before(deadline); {
		var plans []plan
		for event, last := range lastAnswers(h) {
			if !last.isSettled() {
				index, _ := strconv.Atoi(event[len("event-"):])
				plans = append(plans, planOf(runs+len(plans), index, chance))
			}
		}
		if len(plans) == 0 {
			return nil
		}
		runs += len(plans)
		if err := deliver(plans, servers, h); err != nil {
			return err
		}
	}
	return nil
}

// A randomReport is what happened in the runs, by kinds.
type randomReport struct {
	Title   string
	Bodies  int
	Answers map[string]int
	Faults  map[string]int
	Forced  int
	Broken  []string
}

type randomOptions struct {
	Store string
	Runs  int
	Seed  uint64
	Kinds []string // all, if empty
	// Faulty is how many replicas have faults; all, if 0.
	Faulty int
	// Settles: what is not settled after the faults is delivered again.
	Settles bool
}

func randomRuns(o randomOptions) (*randomReport, error) {
	replicas := 1
	if o.Store == "postgres" {
		replicas = 2
	}
	testbed, err := startTestbed(o.Store, replicas, nil)
	if err != nil {
		return nil, err
	}
	defer testbed.close()
	if len(o.Kinds) == 0 {
		o.Kinds = allFaults
	}
	if o.Faulty == 0 {
		o.Faulty = replicas
	}
	began := time.Now()
	h := &history{margin: randomTTL / 10, maxAttempts: randomMaxAttempts, records: map[string]object{}}
	var sessions []string
	for i := range sessionCount {
		sessions = append(sessions, fmt.Sprintf("session-%d", i))
	}
	plans := plansOf(o.Runs, rand.New(rand.NewPCG(o.Seed, 0)))
	var problem error
	faults, err := withFaults(testbed, o.Seed, h, sessions, o.Kinds, o.Faulty, func() {
		problem = deliver(plans, testbed.replicas, h)
	})
	if err == nil {
		err = problem
	}
	if err == nil && o.Settles {
		err = settle(len(plans), testbed.replicas, h)
	}
	for event := range lastAnswers(h) {
		if err != nil {
			return nil, fmt.Errorf("%w\nlog of the server:\n%s", err, testbed.Log())
		}
		var record any
		record, err = testbed.ask("look", object{"team": team, "event": event})
		h.records[event], _ = record.(object)
	}
	report := &randomReport{
		Title:   fmt.Sprintf("%s, seed %d, %v", o.Store, o.Seed, time.Since(began).Round(time.Second)),
		Bodies:  len(h.bodies),
		Answers: map[string]int{},
		Faults:  map[string]int{},
		Forced:  len(h.forced),
		Broken:  h.broken(),
	}
	for _, a := range h.answers {
		report.Answers[a.kind()]++
	}
	for _, kind := range faults {
		report.Faults[kind]++
	}
	return report, nil
}

func TestRandomRuns(t *testing.T) {
	for _, store := range stores {
		t.Run(store, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			if given := os.Getenv("ONCEGATE_TEST_SEED"); given != "" {
				seed, _ = strconv.ParseUint(given, 10, 64)
			}
			report, err := randomRuns(randomOptions{Store: store, Runs: randomRunCount, Seed: seed, Settles: true})
			if err != nil {
				t.Fatal(err)
			}
			shown, _ := json.MarshalIndent(report, "", "  ")
			t.Logf("%s", shown)
			for _, broken := range report.Broken {
				t.Error(broken)
			}
			// Less would prove little.
			for _, kind := range allFaults {
				if report.Faults[kind] == 0 {
					t.Errorf("no fault was %s", kind)
				}
			}
			for kind, least := range map[string]int{
				"ran":       randomRunCount / deliveriesOfEvent * 9 / 10,
				"duplicate": randomRunCount / 50,
				"gave up":   1,
				"turn_lost": 1,
			} {
				if report.Answers[kind] < least {
					t.Errorf("%d answers are %s, fewer than %d", report.Answers[kind], kind, least)
				}
			}
			if report.Bodies < randomRunCount/deliveriesOfEvent || report.Forced < 1 {
				t.Errorf("%d bodies, %d releases by force", report.Bodies, report.Forced)
			}
		})
	}
}
