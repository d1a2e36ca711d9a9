// Command monitors reads manifests from its standard input, and fails unless each ServiceMonitor and PrometheusRule
// among them is one: without a field that the Prometheus operator does not know. It prints how many there were.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	strict "sigs.k8s.io/yaml"
)

func check(manifest []byte) (bool, error) {
	var found struct {
		Kind string `json:"kind"`
	}
	if err := strict.Unmarshal(manifest, &found); err != nil {
		return false, err
	}
	switch found.Kind {
	case "ServiceMonitor":
		return true, strict.UnmarshalStrict(manifest, &monitoring.ServiceMonitor{})
	case "PrometheusRule":
		return true, strict.UnmarshalStrict(manifest, &monitoring.PrometheusRule{})
	}
	return false, nil
}

func run() error {
	documents := yaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	for count := 0; ; {
		manifest, err := documents.Read()
		if errors.Is(err, io.EOF) {
			fmt.Println(count)
			return nil
		}
		if err != nil {
			return err
		}
		is, err := check(manifest)
		if err != nil {
			return err
		}
		if is {
			count++
		}
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
