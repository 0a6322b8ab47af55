// What the canvases show: the hopper, the maze, and the agent's state as a strip of coloured cells.

const METRES = 3.4; // of the hopper's world that fit the picture's width

/** The hopper from the side; the picture follows it. */
export function drawHopper(canvas, hopper) {
  const { context, width, height, colour } = cleared(canvas);
  const scale = width / METRES;
  const floor = height * 0.86;
  const toX = (x) => (x - hopper.position) * scale + width / 2;
  const toY = (z) => floor - z * scale;

  context.strokeStyle = colour("--line");
  context.fillStyle = colour("--quiet");
  context.lineWidth = 2;
  line(context, [0, floor], [width, floor]);
  context.font = "13px system-ui, sans-serif";
  context.textAlign = "center";
  const left = Math.ceil((hopper.position - METRES / 2) * 2) / 2;
  for (let x = left; x < left + METRES; x += 0.5) {
    line(context, [toX(x), floor], [toX(x), floor + 8]);
    if (Number.isInteger(x)) context.fillText(`${x} m`, toX(x), floor + 24);
  }

  context.strokeStyle = colour("--body");
  context.lineCap = "round";
  for (const { ends, radius } of hopper.capsules()) {
    context.lineWidth = 2 * radius * scale;
    line(context, ...ends.map(([x, z]) => [toX(x), toY(z)]));
  }
}

/** The corridor from above: the cue at its start, the agent, and the junction with its two ends. */
export function drawMaze(canvas, maze, remembered) {
  const { context, width, height, colour } = cleared(canvas);
  const [start, junction, middle] = [width * 0.1, width * 0.85, height / 2];
  const arm = height * 0.3;
  const share = maze.length ? Math.min(maze.steps / maze.length, 1) : 0;
  const at = [start + share * (junction - start), middle + (maze.answer ? -maze.answer * arm : 0)];

  context.strokeStyle = colour("--line");
  context.lineWidth = 36;
  context.lineCap = "square";
  line(context, [start, middle], [junction, middle]);
  line(context, [junction, middle - arm], [junction, middle + arm]);

  context.font = "15px system-ui, sans-serif";
  context.textAlign = "center";
  context.fillStyle = colour("--quiet");
  context.fillText("junction", junction, middle - arm - 32);
  // The cue is drawn as long as the agent sees it.
  if (maze.steps === 0) {
    context.fillStyle = colour("--accent");
    context.fillText(`cue: ${maze.cue > 0 ? "up" : "down"}`, start + 10, middle - 34);
  }

  context.fillStyle = colour("--body");
  context.beginPath();
  context.arc(...at, 13, 0, 2 * Math.PI);
  context.fill();
  if (remembered && !maze.answer) {
    context.strokeStyle = colour("--body");
    context.lineWidth = 3;
    const tip = at[1] - Math.sign(remembered) * 46;
    line(context, [at[0], at[1] - Math.sign(remembered) * 18], [at[0], tip]);
    line(context, [at[0] - 6, tip + Math.sign(remembered) * 8], [at[0], tip]);
    line(context, [at[0] + 6, tip + Math.sign(remembered) * 8], [at[0], tip]);
  }
}

/** Numbers as cells: one colour above 0, another below, stronger the larger. */
export function drawState(canvas, numbers) {
  const { context, width, height, colour } = cleared(canvas);
  const columns = Math.ceil(Math.sqrt((numbers.length * width) / height));
  const rows = Math.ceil(numbers.length / columns);
  const [cellWidth, cellHeight] = [width / columns, height / rows];
  const colours = [colour("--below"), colour("--above")];
  numbers.forEach((value, i) => {
    context.fillStyle = colours[value > 0 ? 1 : 0];
    context.globalAlpha = Math.abs(value) / (0.5 + Math.abs(value));
    context.fillRect((i % columns) * cellWidth, Math.floor(i / columns) * cellHeight, cellWidth, cellHeight);
  });
  context.globalAlpha = 1;
}

function line(context, from, to) {
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

/** An empty picture as sharp as the screen, measured in the page's pixels. */
function cleared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const [across, down] = [width, height].map((size) => Math.round(size * devicePixelRatio));
  if (canvas.width !== across || canvas.height !== down) [canvas.width, canvas.height] = [across, down];
  const context = canvas.getContext("2d");
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  context.clearRect(0, 0, width, height);
  // Custom properties hold light-dark(); the computed colour of a property that uses one is resolved.
  const colour = (name) => {
    canvas.style.color = `var(${name})`;
    return getComputedStyle(canvas).color;
  };
  return { context, width, height, colour };
}
