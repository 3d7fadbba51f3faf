// Reads a document with AsyncAPI's own parser; prints what it finds that is more than a hint.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const found = await new Parser().validate(readFileSync(process.argv[2], "utf8"));
const serious = found.filter((one) => one.severity < 2);
console.log(JSON.stringify(serious.map((one) => `${one.path.join("/")}: ${one.message}`)));
