//go:build !linux

package oncegate

import "time"

var began = time.Now()

func now() moment { return time.Since(began) }
