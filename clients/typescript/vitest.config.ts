import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: "test/conformance/postgres.ts",
    pool: "forks",
    testTimeout: 180_000,
    hookTimeout: 60_000,
    maxConcurrency: 8,
    // Scenarios have their own concurrency; files that ran beside them would disturb their times.
    fileParallelism: false,
  },
});
