package conformance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each planted bug turns its scenarios red, and some turn random runs red. So a green one means something.

const (
	scenarioVariable = "ONCEGATE_TEST_SCENARIO"
	randomVariable   = "ONCEGATE_TEST_RANDOM"

	// A random run in which the bug has no effect is repeated with the next seed.
	plantedSeeds   = 10
	plantedRunSize = 120
)

// A bug of clients/conformance/planted.json.
type bug struct {
	Name   string
	Broken string
	// Red are the scenarios that it turns red, each with the number of the step that differs.
	Red map[string]int
	// Random: how random runs find it.
	Random *struct {
		Rule   string
		Faults []string
	}
}

// A change of one text of a file of the library.
type change struct{ file, was, now string }

const entered = `
		t.read(&pb.Turn{Attempt: 1, Remaining: durationpb.New(time.Minute)}, t.sentAt(), 0)
		return true, nil`

var changes = map[string][]change{
	"enters-on-busy": {{"turn.go", "return false, busy(news.Busy)", "_ = news" + entered}},
	"enters-on-duplicate": {{"turn.go", "case *pb.RunTurnResponse_Duplicate:",
		"case *pb.RunTurnResponse_Duplicate:" + entered}},
	"fails-open": {{"gate.go", "case RunUnguarded:", "case RunUnguarded, Raise:"}},
	"impatient": {{"hold.go", "if !failed.retryable() || left <= 0 || delay > left {",
		"if !failed.retryable() || left <= 0 || delay != 0 {"}},
	"no-wait": {{"turn.go", "t.request.Wait = durationpb.New(wait)", "t.request.Wait = durationpb.New(0 * wait)"}},
	"new-request-id-per-retry": {{"turn.go", "t.request.Wait = durationpb.New(wait)",
		"t.request.Wait = durationpb.New(wait)\n\tt.startOver()"}},
	"no-consumer": {{"delivery.go", "Consumer: orElse(d.Consumer, consumer),", "Consumer: consumer[:0],"}},
	"counts-from-receipt": {{"keep.go", "h.trustedEnd = sent + elapsed + lasts",
		"h.trustedEnd = now() + 0*sent + elapsed + lasts"}},
	"ignores-elapsed": {{"keep.go", "h.trustedEnd = sent + elapsed + lasts",
		"h.trustedEnd = sent + 0*elapsed + lasts"}},
	"ignores-grace": {{"keep.go", "lasts = min(remaining, grace)", "lasts = remaining"}},
	"silence-is-not-probed": {{"keep.go", "h.probeAt = now() + min(ttl*2/5, latest)",
		"h.probeAt = now() + time.Hour"}},
	"no-renewal-after-a-break": {{"keep.go", "	h.renewing = true\n",
		"	if true {\n\t\th.mu.Unlock()\n\t\th.lose(\"EXPIRED\")\n\t\treturn false\n\t}\n"}},
	"renewal-dies":            {{"keep.go", "time.NewTimer(min(h.config.ttl/3, left/2))", "time.NewTimer(time.Hour)"}},
	"loss-does-not-interrupt": {{"hold.go", "if h.finish(reason) {", "if reason == \"\" && h.finish(reason) {"}},
	"check-ignores-the-clock": {{"view.go", "case h.held && h.trustedEnd <= now():", "case h.trustedEnd < 0:"}},
	"end-after-loss":          {{"end.go", `	if !t.finish("") {`, `	if t.finish(""); false {`}},
	"end-is-not-repeated": {{"end.go", "if finished, err := t.endStream(end, until); finished || err != nil {",
		"if finished, err := t.endStream(end, until); true {\n\t\t\tif !finished && err == nil {\n" +
			"\t\t\t\terr = unavailable(\"no answer\")\n\t\t\t}"}},
	"unknown-is-success": {{"end.go",
		`return "UNKNOWN", &OutcomeUnknownError{TurnID: t.ID(), Value: value, cause: err}`,
		`return "SUCCEEDED", nil`}},
	"success-is-failure": {{"end.go",
		"Outcome: pb.TurnOutcome_TURN_OUTCOME_SUCCEEDED, Result: data, ResultType: resultType",
		"Outcome: pb.TurnOutcome_TURN_OUTCOME_FAILED, Detail: resultType + string(data[:0])"}},
	"error-is-success": {{"end.go",
		"Outcome: pb.TurnOutcome_TURN_OUTCOME_FAILED, Detail: short(detail)",
		"Outcome: pb.TurnOutcome_TURN_OUTCOME_SUCCEEDED"}},
	"reject-is-failure": {{"end.go", "pb.TurnOutcome_TURN_OUTCOME_REJECTED, Detail",
		"pb.TurnOutcome_TURN_OUTCOME_FAILED, Detail"}},
	"own-error-is-masked": {
		{"end.go", `t.config.log.Debug("the end of a turn failed", "error", err)`, "t.endFailure = err"},
		{"run.go", `turn.Fail(fmt.Sprintf("%T: %v", err, err))`,
			`turn.Fail(fmt.Sprintf("%T: %v", err, err))
	if turn.endFailure != nil {
		err = published(turn.endFailure)
	}`},
	},
	"single-channel":        {{"link.go", "streamsPerConnection = 900", "streamsPerConnection = 1 << 30"}},
	"lease-is-not-released": {{"lease.go", `l.gate.track(func() { l.giveBack("") })`, "l.breakStream()"}},
}

func loadBugs(t *testing.T) (bugs []bug) {
	content, err := os.ReadFile(folder + "/planted.json")
	if err == nil {
		err = json.Unmarshal(content, &bugs)
	}
	if err != nil {
		t.Fatal(err)
	}
	return bugs
}

// plant builds this program with a bug in the library: an overlay has the changed files.
func plant(t *testing.T, name string) (program string) {
	folder := t.TempDir()
	overlay := map[string]string{}
	for _, change := range changes[name] {
		path, err := filepath.Abs("../../oncegate/" + change.file)
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(source), change.was) != 1 {
			t.Fatalf("the text to change must stand once in %s; plant anew: %s", change.file, change.was)
		}
		overlay[path] = filepath.Join(folder, change.file)
		changed := strings.Replace(string(source), change.was, change.now, 1)
		if err := os.WriteFile(overlay[path], []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, _ := json.Marshal(map[string]any{"Replace": overlay})
	if err := os.WriteFile(filepath.Join(folder, "overlay.json"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(folder, "planted.test")
	build := exec.Command("go", "test", "-c", "-overlay", filepath.Join(folder, "overlay.json"), "-o", program, ".")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return program
}

func runMode(program, variable string, arguments any) (stdout []byte, stderr string, err error) {
	list, _ := json.Marshal(arguments)
	command := exec.Command(program)
	command.Env = append(os.Environ(), variable+"="+string(list))
	var problems bytes.Buffer
	command.Stderr = &problems
	stdout, err = command.Output()
	return stdout, problems.String(), err
}

func runOneScenario(path string) error {
	var name string
	if err := json.Unmarshal([]byte(path), &name); err != nil {
		return err
	}
	s, err := readScenario(name)
	if err != nil {
		return err
	}
	return runScenario(&s, "sqlite")
}

func runRandom(arguments string) error {
	var options randomOptions
	if err := json.Unmarshal([]byte(arguments), &options); err != nil {
		return err
	}
	report, err := randomRuns(options)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

func TestPlantedBugs(t *testing.T) {
	bugs := loadBugs(t)
	if len(bugs) != len(changes) {
		t.Errorf("%d bugs are planted of %d", len(changes), len(bugs))
	}
	// The programs with a bug share it.
	if err := database.start(); err != nil {
		t.Fatal(err)
	}
	for _, b := range bugs {
		t.Run(b.Name, func(t *testing.T) {
			if changes[b.Name] == nil {
				t.Fatal("it is not planted")
			}
			t.Parallel()
			program := plant(t, b.Name)
			shown := 0
			for file, step := range b.Red {
				s, err := readScenario(folder + "/scenarios/" + file + ".json")
				if err != nil {
					t.Fatal(err)
				}
				if s.isPossible() { // else random runs find it
					turnsRed(t, program, file, step)
					shown++
				}
			}
			if b.Random != nil {
				breaks(t, program, b.Random.Rule, b.Random.Faults)
				shown++
			}
			if shown == 0 {
				t.Error("nothing shows it")
			}
		})
	}
}

func turnsRed(t *testing.T, program, file string, step int) {
	_, report, err := runMode(program, scenarioVariable, folder+"/scenarios/"+file+".json")
	var exit *exec.ExitError
	differs := regexp.MustCompile(fmt.Sprintf(`^Error: step %d: .*\nMismatch: `, step))
	if !errors.As(err, &exit) || !differs.MatchString(report) || strings.Contains(report, `"unexpected"`) {
		t.Errorf("%s is not red at step %d: %v\n%s", file, step, err, report)
	}
}

func breaks(t *testing.T, program, rule string, faults []string) {
	for seed := range uint64(plantedSeeds) {
		// The replica without faults grants what the holders of the other one may have lost.
		options := randomOptions{Store: "postgres", Runs: plantedRunSize, Seed: seed, Kinds: faults, Faulty: 1}
		output, problems, err := runMode(program, randomVariable, options)
		var report randomReport
		if err == nil {
			err = json.Unmarshal(output, &report)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, problems)
		}
		for _, broken := range report.Broken {
			if strings.HasPrefix(broken, rule+": ") {
				return
			}
		}
	}
	t.Errorf("%d random runs have not broken %s", plantedSeeds, rule)
}
