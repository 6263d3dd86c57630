// usage: node compile.js SPEC.ksy FOLDER: writes the Python parser of a Kaitai description.
const fs = require("fs");
const path = require("path");
const yaml = require("js-yaml");
const compiler = require("kaitai-struct-compiler");

const [spec, folder] = process.argv.slice(2);
const noImports = { importYaml: (name) => Promise.reject(new Error(`no import of ${name}`)) };

compiler.compile("python", yaml.load(fs.readFileSync(spec, "utf8")), noImports, false).then(
  (files) => {
    for (const [name, code] of Object.entries(files)) {
      fs.writeFileSync(path.join(folder, path.basename(name)), code);
    }
  },
  (error) => {
    console.error(String(error));
    process.exit(1);
  },
);
