import { createRequire } from "node:module";

const require = createRequire(import.meta.url);

export function binaryPath() {
  const platform = `${process.platform}-${process.arch}`;
  try {
    return require.resolve(`@oncegate/server-${platform}/bin/oncegate`);
  } catch (cause) {
    throw new Error(
      `@oncegate/server has no binary for ${platform}, or it was installed without optional ` +
        "dependencies; install it with them, or build the server with cargo",
      { cause },
    );
  }
}
