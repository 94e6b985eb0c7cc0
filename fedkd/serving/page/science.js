// src/science.ts
var WIRE = 2;
export {
  WIRE
};
