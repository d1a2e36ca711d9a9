package io.oncegate;

import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.UnknownHostException;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/** Where the server is. */
final class Address {
  static final String LIST_SCHEME = "oncegate-list";
  private static final String DEFAULT = "127.0.0.1:7411";
  private static final Pattern SCHEME = Pattern.compile("(?is)^([a-z][a-z0-9+.-]*):(.*)$");
  private static final Pattern HOST_PORT =
      Pattern.compile("^(?:\\[([^\\]]*)\\]|([^\\s:/@?#,\\[\\]\\\\]+)):([0-9]{1,5})$");
  private static final Pattern IPV4 =
      Pattern.compile("^(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})(?:\\.(?!$)|$)){4}$");
  private static final Pattern IPV6 = Pattern.compile("^[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(?:%[0-9A-Za-z_.-]+)?$");

  /** For messages: without a scheme, or with that of gRPC. */
  final String name;

  final boolean tls;

  /** For gRPC; empty for a socket. */
  final String target;

  /** The path of a Unix socket. */
  final @Nullable String socket;

  private final List<String> hosts;

  private Address(String name, boolean tls, String target, @Nullable String socket, List<String> hosts) {
    this.name = name;
    this.tls = tls;
    this.target = target;
    this.socket = socket;
    this.hosts = hosts;
  }

  static Address parse(@Nullable String address) {
    if (address == null || address.isEmpty()) {
      return ofHost(DEFAULT, false);
    }
    Matcher found = SCHEME.matcher(address);
    String scheme = found.matches() ? found.group(1).toLowerCase(Locale.ROOT) : "";
    String rest = found.matches() ? found.group(2) : "";
    switch (scheme) {
      case "http":
      case "https":
        if (rest.startsWith("//")) {
          String host = trimSlashes(rest.substring(2));
          if (!isHostAndPort(host)) {
            throw wrong(scheme + "://HOST:PORT");
          }
          return ofHost(host, scheme.equals("https"));
        }
        break;
      case "dns":
        String host = rest.startsWith("///") ? rest.substring(3) : rest;
        if (isHostAndPort(host)) {
          return new Address("dns:" + rest, false, Link.uri("dns", host).toString(), null, List.of(host));
        }
        break;
      case "unix":
        String path = rest.startsWith("///") ? rest.substring(2) : rest;
        if (!path.replace("/", "").isEmpty()) {
          return new Address("unix:" + rest, false, "", path, List.of());
        }
        break;
      case "ipv4":
      case "ipv6":
        List<String> list = List.of(rest.split(",", -1));
        if (list.stream().allMatch(each -> isIpAndPort(each, scheme.equals("ipv6")))) {
          return new Address(scheme + ":" + rest, false, Link.uri(LIST_SCHEME, rest).toString(), null, list);
        }
        break;
      default:
        break;
    }
    if (!isHostAndPort(address)) {
      throw wrong("HOST:PORT, https://HOST:PORT, unix:PATH or dns:///NAME:PORT");
    }
    return ofHost(address, false);
  }

  private static Address ofHost(String host, boolean tls) {
    return new Address(host, tls, Link.uri("dns", host).toString(), null, List.of(host));
  }

  private static String trimSlashes(String text) {
    int end = text.length();
    while (end > 0 && text.charAt(end - 1) == '/') {
      end--;
    }
    return text.substring(0, end);
  }

  /** It does not show the address: that may hold a password. */
  private static MisconfiguredException wrong(String form) {
    return new MisconfiguredException("server", "the server must be " + form);
  }

  private static boolean isHostAndPort(String text) {
    Matcher found = HOST_PORT.matcher(text);
    if (!found.matches() || text.endsWith("\n")) {
      return false;
    }
    int port = Integer.parseInt(found.group(3));
    return port >= 1 && port <= 65535 && (found.group(1) == null || isIpv6(found.group(1)));
  }

  private static boolean isIpAndPort(String text, boolean isIpv6) {
    return isHostAndPort(text) && (isIpv6 ? text.startsWith("[") : IPV4.matcher(hostOf(text)).matches());
  }

  private static boolean isIpv6(String text) {
    if (!IPV6.matcher(text).matches()) {
      return false;
    }
    int zone = text.indexOf('%');
    try {
      // A literal is not looked up. Java makes an IPv4 address of one that is mapped.
      InetAddress.getByName(zone < 0 ? text : text.substring(0, zone));
      return true;
    } catch (UnknownHostException e) {
      return false;
    }
  }

  private static String hostOf(String hostAndPort) {
    String host = hostAndPort.substring(0, hostAndPort.lastIndexOf(':'));
    return host.startsWith("[") ? host.substring(1, host.length() - 1) : host;
  }

  /** What is sent in plaintext stays on this host. */
  boolean isLocal() {
    return hosts.stream().allMatch(Address::isLoopback);
  }

  private static boolean isLoopback(String hostAndPort) {
    String host = hostOf(hostAndPort);
    if (!IPV4.matcher(host).matches() && !IPV6.matcher(host).matches()) {
      return host.equalsIgnoreCase("localhost");
    }
    try {
      return InetAddress.getByName(host).isLoopbackAddress(); // a literal is not looked up
    } catch (UnknownHostException e) {
      return false;
    }
  }

  static List<InetSocketAddress> readList(URI target) {
    List<InetSocketAddress> found = new ArrayList<>();
    for (String address : target.getPath().substring(1).split(",", -1)) {
      int port = Integer.parseInt(address.substring(address.lastIndexOf(':') + 1));
      found.add(new InetSocketAddress(hostOf(address), port));
    }
    return found;
  }
}
