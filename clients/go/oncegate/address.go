package oncegate

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

const defaultServer = "127.0.0.1:7411"

// A target is where the server is.
type target struct {
	// name is for gRPC: it has a scheme, or is HOST:PORT.
	name string
	tls  bool
	// addresses of ipv4: and ipv6:, which the gRPC of Go does not know.
	addresses []string
}

var (
	schemeForm   = regexp.MustCompile(`(?is)^([a-z][a-z0-9+.-]*):(.*)$`)
	hostPortForm = regexp.MustCompile(`^(?:\[([^\]]*)\]|[^\s:/@?#,\[\]\\]+):([0-9]{1,5})$`)
)

func parseTarget(address string) (target, error) {
	var scheme, rest string
	if found := schemeForm.FindStringSubmatch(address); found != nil {
		scheme, rest = strings.ToLower(found[1]), found[2]
	}
	switch scheme {
	case "http", "https":
		if host, ok := strings.CutPrefix(rest, "//"); ok {
			host = strings.TrimRight(host, "/")
			if !isHostAndPort(host) {
				return target{}, noAddress(scheme + "://HOST:PORT")
			}
			return target{name: host, tls: scheme == "https"}, nil
		}
	case "dns", "unix":
		if strings.Trim(rest, "/") != "" {
			return target{name: scheme + ":" + rest}, nil
		}
	case "ipv4", "ipv6":
		addresses := strings.Split(rest, ",")
		for _, address := range addresses {
			ip, err := netip.ParseAddrPort(address)
			if err != nil || ip.Port() == 0 || ip.Addr().Is4() != (scheme == "ipv4") {
				return target{}, noAddress(scheme + ":IP:PORT,…")
			}
		}
		return target{name: scheme + ":" + rest, addresses: addresses}, nil
	}
	if !isHostAndPort(address) {
		return target{}, noAddress("HOST:PORT, https://HOST:PORT, unix:PATH or dns:///NAME:PORT")
	}
	return target{name: address}, nil
}

// noAddress does not show the address: it may hold a password.
func noAddress(form string) error { return misconfigured("WithServer", "the server must be %s", form) }

func isHostAndPort(text string) bool {
	found := hostPortForm.FindStringSubmatch(text)
	if found == nil {
		return false
	}
	if port, err := strconv.Atoi(found[2]); err != nil || port < 1 || port > 65535 {
		return false
	}
	if !strings.HasPrefix(text, "[") {
		return true
	}
	ip, err := netip.ParseAddr(found[1])
	return err == nil && ip.Is6()
}

// isLocal: what is sent in plaintext stays on this host.
func (t target) isLocal() bool {
	if strings.HasPrefix(t.name, "unix:") {
		return true
	}
	addresses := t.addresses
	if addresses == nil {
		name := strings.TrimPrefix(t.name, "dns:")
		addresses = []string{strings.TrimPrefix(name, "///")}
	}
	for _, address := range addresses {
		if !isLoopback(address) {
			return false
		}
	}
	return true
}

func isLoopback(address string) bool {
	host := address
	if inside, ok := strings.CutPrefix(address, "["); ok {
		host, _, _ = strings.Cut(inside, "]")
	} else if strings.Count(address, ":") == 1 {
		host, _, _ = strings.Cut(address, ":")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback()
	}
	return strings.EqualFold(host, "localhost")
}
