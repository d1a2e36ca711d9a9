/** One database server for all scenarios, unless there is one already. */

import { LineProcess } from "./lines.js";
import { program } from "./testbed.js";

export default async function setup(): Promise<(() => Promise<void>) | undefined> {
  if (process.env.ONCEGATE_TEST_DATABASE_URL) return undefined;
  const postgres = new LineProcess(program, ["postgres"]);
  const { ready } = await postgres.greeting;
  process.env.ONCEGATE_TEST_DATABASE_URL = (ready as { url: string }).url;
  return () => postgres.close();
}
