package oncegate

import (
	"time"

	"golang.org/x/sys/unix"
)

// now also counts while the machine is suspended, as the server does.
func now() moment {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has this clock
	}
	return time.Duration(ts.Nano())
}
